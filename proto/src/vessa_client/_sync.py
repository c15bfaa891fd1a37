"""Synchronous client."""

from __future__ import annotations

import queue
import random
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
from vessa_client._session import (
    CHANNEL_OPTIONS,
    References,
    StreamSession,
    is_unknown_reference,
    to_error,
)
from vessa_client._types import (
    AnyArray,
    BankListing,
    ClassDefinition,
    SegmentationRequest,
    SegmentationResult,
    ServerInfo,
    TemplateInfo,
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
        light = self._references.by_reference(request)
        try:
            response = self._segment_once(light)
        except VessaError as error:
            if light is request or not is_unknown_reference(error):
                raise
            self._references.forget(request)
            light = request
            response = self._segment_once(request)
        result = convert.result_from_message(response)
        self._references.confirm(light)
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
        sent again.

        Args:
            requests: read as places in the window become free.
            window: most unanswered requests.
            timeout: seconds for the whole stream; None for no end.

        Raises:
            UnavailableError: the server stayed away for all attempts of the retry policy.
            DeadlineError: not all answers came within ``timeout``.
        """
        session, attempt = StreamSession(self._references, requests, window), 0
        while True:
            outgoing: queue.SimpleQueue[pb.SegmentRequest | None] = queue.SimpleQueue()
            for message in session.unfinished():
                outgoing.put(message)
            call = self._stub.SegmentStream(
                iter(outgoing.get, None), timeout=timeout, metadata=self.options.metadata()
            )
            try:
                while True:
                    for item in session.fill():
                        if isinstance(item, VessaError):
                            yield item
                        else:
                            outgoing.put(item)
                    if session.idle:
                        return
                    settled = session.close(self._receive(call))
                    attempt = 0
                    if isinstance(settled, pb.SegmentRequest):
                        outgoing.put(settled)
                    else:
                        yield settled
            except UnavailableError:
                attempt += 1
                if attempt >= self.options.retry.attempts:
                    raise
                time.sleep(self.options.retry.delay(attempt - 1, random.random()))
            finally:
                outgoing.put(None)
                call.cancel()

    def add_template(
        self,
        image: AnyArray | bytes,
        labels: AnyArray,
        classes: Iterable[ClassDefinition],
        *,
        name: str = "",
    ) -> tuple[TemplateInfo, bool]:
        """Add an annotated image; returns it and whether it is new.

        Args:
            image: (H, W) or (H, W, 3) pixels, or an encoded file.
            labels: (H, W) integers; i is the i-th of ``classes``.
            classes: names and descriptions.
            name: free name, for people.
        """
        definitions = list(classes)
        message = pb.AddTemplateRequest(
            image=convert.image_to_message(image),
            label_map=wire.encode_label_map(labels, len(definitions), field="label_map"),
            classes=[convert.class_to_message(c) for c in definitions],
            name=name,
        )
        response = self._call(self._stub.AddTemplate, message)
        return convert.template_from_message(response.template), response.created

    def list_templates(self) -> BankListing:
        """Templates and classes of the bank."""
        return convert.listing_from_message(
            self._call(self._stub.ListTemplates, pb.ListTemplatesRequest())
        )

    def delete_template(self, template_id: str) -> str:
        """Delete a template; returns the new version of the bank."""
        message = pb.DeleteTemplateRequest(template_id=template_id)
        version: str = self._call(self._stub.DeleteTemplate, message).bank_version
        return version

    def info(self) -> ServerInfo:
        """Model, bank and limits."""
        return convert.info_from_message(
            self._call(self._stub.GetServerInfo, pb.GetServerInfoRequest())
        )

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

    def _segment_once(self, request: SegmentationRequest) -> pb.SegmentResponse:
        message = convert.request_to_message(request)
        response: pb.SegmentResponse = self._call(self._stub.Segment, message, request.request_id)
        return response

    def _call(self, method: Callable[..., T], message: object, request_id: str = "") -> T:
        deadline = time.monotonic() + self.options.timeout
        for attempt in range(self.options.retry.attempts):
            remaining = deadline - time.monotonic()
            try:
                return method(message, timeout=remaining, metadata=self.options.metadata())
            except grpc.RpcError as raised:
                error = to_error(raised, request_id)
                wait = self.options.retry.delay(attempt, random.random())
                last = attempt + 1 == self.options.retry.attempts
                out_of_time = time.monotonic() + wait > deadline
                if not isinstance(error, UnavailableError) or last or out_of_time:
                    raise error from raised
                time.sleep(wait)
        raise AssertionError("unreachable: the last attempt returns or raises")

    @staticmethod
    def _receive(call: Iterator[pb.SegmentResponse]) -> pb.SegmentResponse:
        try:
            response: pb.SegmentResponse = next(call)
        except grpc.RpcError as raised:
            raise to_error(raised) from raised
        except StopIteration:
            raise UnavailableError("the server closed the stream") from None
        return response
