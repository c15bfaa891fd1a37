"""Asynchronous client; the same methods as :class:`vessa_client.VessaClient`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from types import TracebackType
from typing import Self, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vessa.v1 import pseudo_label_pb2 as pb
from vessa.v1 import pseudo_label_pb2_grpc as pb_grpc
from vessa_client import convert, wire
from vessa_client._errors import UnavailableError, VessaError
from vessa_client._options import DEFAULT_TARGET, ClientOptions
from vessa_client._outbox import AsyncOutbox
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


class AsyncVessaClient:
    """Client of one server for asyncio; closed by ``async with``."""

    def __init__(self, target: str = DEFAULT_TARGET, options: ClientOptions | None = None) -> None:
        self.target = target
        self.options = options or ClientOptions()
        credentials = self.options.credentials()
        self._channel = (
            grpc.aio.secure_channel(target, credentials, CHANNEL_OPTIONS)
            if credentials
            else grpc.aio.insecure_channel(target, CHANNEL_OPTIONS)
        )
        self._stub = pb_grpc.PseudoLabelServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)
        self._references = References()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close(None)

    async def segment(self, request: SegmentationRequest) -> SegmentationResult:
        """See :meth:`vessa_client.VessaClient.segment`."""
        request = with_bank(request, self.options.bank)
        light, backoff = self._references.by_reference(request), self._backoff()
        try:
            response = await self._segment_once(light, backoff)
        except VessaError as error:
            if light is request or not is_unknown_image(error):
                raise
            self._references.forget(request)
            light = request
            response = await self._segment_once(request, backoff)
        result = convert.result_from_message(response)
        self._references.confirm(light, result)
        return result

    async def segment_stream(
        self,
        requests: Iterable[SegmentationRequest],
        *,
        window: int = 8,
        timeout: float | None = None,
    ) -> AsyncIterator[SegmentationResult | VessaError]:
        """See :meth:`vessa_client.VessaClient.segment_stream`."""
        named = (with_bank(request, self.options.bank) for request in requests)
        session = StreamSession(
            self._references, named, window=window, retry=self.options.retry, timeout=timeout
        )
        while True:
            outbox = AsyncOutbox(session.unfinished())
            call = self._stub.SegmentStream(
                aiter(outbox), timeout=session.remaining(), metadata=self.options.metadata()
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
                    settled = session.settle(await self._receive(call))
                    if isinstance(settled, Outgoing):
                        outbox.put(settled)
                    else:
                        yield settled
            except VessaError as error:
                await asyncio.sleep(session.wait(error))
            finally:
                outbox.close()
                call.cancel()

    async def segment_volume(
        self, request: VolumeRequest, *, timeout: float | None = None
    ) -> AsyncIterator[SegmentationResult | VessaError]:
        """See :meth:`vessa_client.VessaClient.segment_volume`."""
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
                    settled = session.settle(await self._receive(call))
                    if settled is not None:
                        yield settled
            except VessaError as error:
                await asyncio.sleep(session.wait(error))
            finally:
                call.cancel()

    async def add_template(
        self,
        image: AnyArray | bytes,
        labels: AnyArray,
        classes: Iterable[ClassDefinition],
        *,
        name: str = "",
        bank: str = "",
        window: Window | None = None,
    ) -> tuple[TemplateInfo, bool]:
        """See :meth:`vessa_client.VessaClient.add_template`."""
        definitions = list(classes)
        message = pb.AddTemplateRequest(
            image=convert.image_to_message(image),
            label_map=wire.encode_label_map(labels, len(definitions), field="label_map"),
            classes=[convert.class_to_message(c) for c in definitions],
            name=name,
            bank=bank or self.options.bank,
            window=convert.window_to_message(window),
        )
        response = await self._call(self._stub.AddTemplate, message)
        return convert.template_from_message(response.template), response.created

    async def get_template(self, template_id: str, *, bank: str = "") -> TemplateContent:
        """See :meth:`vessa_client.VessaClient.get_template`."""
        message = pb.GetTemplateRequest(template_id=template_id, bank=bank or self.options.bank)
        response = await self._call(self._stub.GetTemplate, message)
        return convert.template_content_from_message(response)

    async def list_templates(self, *, bank: str = "") -> BankListing:
        """Templates and classes of the bank."""
        message = pb.ListTemplatesRequest(bank=bank or self.options.bank)
        return convert.listing_from_message(await self._call(self._stub.ListTemplates, message))

    async def delete_template(self, template_id: str, *, bank: str = "") -> str:
        """Delete a template; returns the new version of the bank."""
        message = pb.DeleteTemplateRequest(template_id=template_id, bank=bank or self.options.bank)
        response = await self._call(self._stub.DeleteTemplate, message)
        version: str = response.bank_version
        return version

    async def info(self, *, bank: str = "") -> ServerInfo:
        """Model, bank and limits."""
        message = pb.GetServerInfoRequest(bank=bank or self.options.bank)
        return convert.info_from_message(await self._call(self._stub.GetServerInfo, message))

    async def healthy(self) -> bool:
        """Whether the server serves now; no retries, False where it cannot be reached."""
        try:
            response = await self._health.Check(
                health_pb2.HealthCheckRequest(), timeout=min(5.0, self.options.timeout)
            )
        except grpc.RpcError:
            return False
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    async def _segment_once(
        self, request: SegmentationRequest, backoff: Backoff
    ) -> pb.SegmentResponse:
        message = convert.request_to_message(request)
        response: pb.SegmentResponse = await self._call(
            self._stub.Segment, message, backoff, request.request_id
        )
        return response

    def _backoff(self) -> Backoff:
        return Backoff(self.options.retry, self.options.timeout)

    async def _call(
        self,
        method: Callable[..., Awaitable[T]],
        message: object,
        backoff: Backoff | None = None,
        request_id: str = "",
    ) -> T:
        backoff = backoff or self._backoff()
        while True:
            try:
                return await method(
                    message, timeout=backoff.remaining(), metadata=self.options.metadata()
                )
            except grpc.RpcError as raised:
                await asyncio.sleep(backoff.wait(to_error(raised, request_id)))

    @staticmethod
    async def _receive(
        call: grpc.aio.StreamStreamCall[object, pb.SegmentResponse],
    ) -> pb.SegmentResponse:
        try:
            response = await call.read()
        except grpc.RpcError as raised:
            raise to_error(raised) from raised
        if not isinstance(response, pb.SegmentResponse):
            raise UnavailableError("the server closed the stream")
        return response
