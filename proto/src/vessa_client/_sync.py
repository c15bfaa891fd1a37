"""Synchronous client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vessa.v1 import pseudo_label_pb2 as pb
from vessa.v1 import pseudo_label_pb2_grpc as pb_grpc
from vessa_client import convert, wire
from vessa_client._errors import DeadlineError, UnavailableError, VessaError
from vessa_client._options import DEFAULT_TARGET, ClientOptions
from vessa_client._outbox import Outbox
from vessa_client._session import (
    CHANNEL_OPTIONS,
    Backoff,
    References,
    is_unknown_image,
    to_error,
    with_bank,
)
from vessa_client._streams import Outgoing, StreamSession, VolumeSession
from vessa_client._types import (
    AnyArray,
    BankListing,
    ClassDefinition,
    SegmentationRequest,
    SegmentationResult,
    ServerInfo,
    TemplateContent,
    TemplateInfo,
    VolumeRequest,
    Window,
)

T = TypeVar("T")


class VessaClient:
    """Client of one server; safe to use from several threads, closed by ``with``."""

    def __init__(self, target: str = DEFAULT_TARGET, options: ClientOptions | None = None) -> None:
        self.target = target
        self.options = options or ClientOptions()
        credentials = self.options.credentials()
        self._channel = (
            grpc.secure_channel(target, credentials, CHANNEL_OPTIONS)
            if credentials
            else grpc.insecure_channel(target, CHANNEL_OPTIONS)
        )
        self._stub = pb_grpc.PseudoLabelServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)
        self._references = References()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def segment(self, request: SegmentationRequest) -> SegmentationResult:
        """Segment one image; a reference is sent instead of an image that the server holds.

        Raises:
            VessaError: see the tree in :mod:`vessa_client`.
        """
        request = with_bank(request, self.options.bank)
        light, backoff = self._references.by_reference(request), self._backoff()
        try:
            response = self._segment_once(light, backoff)
        except VessaError as error:
            if light is request or not is_unknown_image(error):
                raise
            self._references.forget(request)
            light = request
            response = self._segment_once(request, backoff)
        result = convert.result_from_message(response)
        self._references.confirm(light, result)
        return result

    def segment_stream(
        self,
        requests: Iterable[SegmentationRequest],
        *,
        window: int = 8,
        timeout: float | None = None,
    ) -> Iterator[SegmentationResult | VessaError]:
        """Segment many images over one stream, at most ``window`` of them in flight.

        Results come as they are ready, out of order; use ``request_id``. A bad request gives
        its error in place of a result. When the connection breaks, what is unfinished is
        sent again; where the server's queue is full, that request is, as soon as it says.

        Args:
            requests: read as places in the window become free.
            window: most unanswered requests.
            timeout: seconds for the whole stream; None for no end.

        Raises:
            UnavailableError: the server stayed away for all attempts of the retry policy.
            DeadlineError: not all answers came within ``timeout``.
        """
        named = (with_bank(request, self.options.bank) for request in requests)
        session = StreamSession(
            self._references, named, window=window, retry=self.options.retry, timeout=timeout
        )
        while True:
            outbox = Outbox(session.unfinished())
            call = self._stub.SegmentStream(
                iter(outbox), timeout=session.remaining(), metadata=self.options.metadata()
            )
            try:
                while True:
                    for item in session.fill():
                        if isinstance(item, VessaError):
                            yield item
                        else:
                            outbox.put(item)
                    if session.idle:
                        return
                    settled = session.settle(self._receive(call))
                    if isinstance(settled, Outgoing):
                        outbox.put(settled)
                    else:
                        yield settled
            except VessaError as error:
                time.sleep(session.wait(error))
            finally:
                outbox.close()
                call.cancel()

    def segment_volume(
        self, request: VolumeRequest, *, timeout: float | None = None
    ) -> Iterator[SegmentationResult | VessaError]:
        """Segment a volume, which is sent once: by reference where the server holds it.

        Results come as they are ready, out of order; use ``slice_index``. A wrong slice gives
        its error in place of a result. When the connection breaks, or the server's queue is
        full, only what is unanswered is asked for again.

        Args:
            request: the volume.
            timeout: seconds for the whole volume; None for no end.

        Raises:
            DeadlineError: not all answers came within ``timeout``.
            VessaError: others; see the tree in :mod:`vessa_client`.
        """
        session = VolumeSession(
            self._references,
            with_bank(request, self.options.bank),
            retry=self.options.retry,
            timeout=timeout,
        )
        while not session.idle:
            call = self._stub.SegmentVolume(
                session.messages(), timeout=session.remaining(), metadata=self.options.metadata()
            )
            try:
                while not session.idle:
                    settled = session.settle(self._receive(call))
                    if settled is not None:
                        yield settled
            except VessaError as error:
                time.sleep(session.wait(error))
            finally:
                call.cancel()

    def add_template(
        self,
        image: AnyArray | bytes,
        labels: AnyArray,
        classes: Iterable[ClassDefinition],
        *,
        name: str = "",
        bank: str = "",
        window: Window | None = None,
    ) -> tuple[TemplateInfo, bool]:
        """Add an annotated image; returns it and whether it is new.

        Args:
            image: (H, W) or (H, W, 3) pixels, or an encoded file.
            labels: (H, W) integers; i is the i-th of ``classes``.
            classes: names and descriptions.
            name: free name, for people.
            bank: name of the bank; empty for the one of the client's options.
            window: intensities that become black and white; kept with the template.
        """
        definitions = list(classes)
        message = pb.AddTemplateRequest(
            image=convert.image_to_message(image),
            label_map=wire.encode_label_map(labels, len(definitions), field="label_map"),
            classes=[convert.class_to_message(c) for c in definitions],
            name=name,
            bank=bank or self.options.bank,
            window=convert.window_to_message(window),
        )
        response = self._call(self._stub.AddTemplate, message)
        return convert.template_from_message(response.template), response.created

    def get_template(self, template_id: str, *, bank: str = "") -> TemplateContent:
        """A template with its pixels.

        Raises:
            NotFoundError: no template of the bank has that id.
        """
        message = pb.GetTemplateRequest(template_id=template_id, bank=bank or self.options.bank)
        return convert.template_content_from_message(self._call(self._stub.GetTemplate, message))

    def list_templates(self, *, bank: str = "") -> BankListing:
        """Templates and classes of the bank."""
        message = pb.ListTemplatesRequest(bank=bank or self.options.bank)
        return convert.listing_from_message(self._call(self._stub.ListTemplates, message))

    def delete_template(self, template_id: str, *, bank: str = "") -> str:
        """Delete a template; returns the new version of the bank."""
        message = pb.DeleteTemplateRequest(template_id=template_id, bank=bank or self.options.bank)
        version: str = self._call(self._stub.DeleteTemplate, message).bank_version
        return version

    def info(self, *, bank: str = "") -> ServerInfo:
        """Model, bank and limits."""
        message = pb.GetServerInfoRequest(bank=bank or self.options.bank)
        return convert.info_from_message(self._call(self._stub.GetServerInfo, message))

    def healthy(self) -> bool:
        """Whether the server serves now; no retries, False where it cannot be reached."""
        try:
            response = self._health.Check(
                health_pb2.HealthCheckRequest(), timeout=min(5.0, self.options.timeout)
            )
        except grpc.RpcError:
            return False
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    def wait_until_healthy(self, timeout: float = 60.0) -> None:
        """Block until the server serves.

        Raises:
            DeadlineError: it does not within ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while not self.healthy():
            if time.monotonic() > deadline:
                raise DeadlineError(f"{self.target}: not serving after {timeout:g} s")
            time.sleep(0.1)

    def _segment_once(self, request: SegmentationRequest, backoff: Backoff) -> pb.SegmentResponse:
        message = convert.request_to_message(request)
        response: pb.SegmentResponse = self._call(
            self._stub.Segment, message, backoff, request.request_id
        )
        return response

    def _backoff(self) -> Backoff:
        return Backoff(self.options.retry, self.options.timeout)

    def _call(
        self,
        method: Callable[..., T],
        message: object,
        backoff: Backoff | None = None,
        request_id: str = "",
    ) -> T:
        backoff = backoff or self._backoff()
        while True:
            try:
                return method(
                    message, timeout=backoff.remaining(), metadata=self.options.metadata()
                )
            except grpc.RpcError as raised:
                time.sleep(backoff.wait(to_error(raised, request_id)))

    @staticmethod
    def _receive(call: Iterator[pb.SegmentResponse]) -> pb.SegmentResponse:
        try:
            response: pb.SegmentResponse = next(call)
        except grpc.RpcError as raised:
            raise to_error(raised) from raised
        except StopIteration:
            raise UnavailableError("the server closed the stream") from None
        return response
