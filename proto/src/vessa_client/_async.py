"""Asynchronous client; the same methods as :class:`vessa_client.VessaClient`."""

from __future__ import annotations

import asyncio
import random
import time
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
        light = self._references.by_reference(request)
        try:
            response = await self._segment_once(light)
        except VessaError as error:
            if light is request or not is_unknown_reference(error):
                raise
            self._references.forget(request)
            light = request
            response = await self._segment_once(request)
        result = convert.result_from_message(response)
        self._references.confirm(light)
        return result

    async def segment_stream(
        self,
        requests: Iterable[SegmentationRequest],
        *,
        window: int = 8,
        timeout: float | None = None,
    ) -> AsyncIterator[SegmentationResult | VessaError]:
        """See :meth:`vessa_client.VessaClient.segment_stream`."""
        session, attempt = StreamSession(self._references, requests, window), 0
        while True:
            call = self._stub.SegmentStream(timeout=timeout, metadata=self.options.metadata())
            try:
                for message in session.unfinished():
                    await _write(call, message)
                while True:
                    for item in session.fill():
                        if isinstance(item, VessaError):
                            yield item
                        else:
                            await _write(call, item)
                    if session.idle:
                        return
                    settled = session.close(await _read(call))
                    attempt = 0
                    if isinstance(settled, pb.SegmentRequest):
                        await _write(call, settled)
                    else:
                        yield settled
            except UnavailableError:
                attempt += 1
                if attempt >= self.options.retry.attempts:
                    raise
                await asyncio.sleep(self.options.retry.delay(attempt - 1, random.random()))
            finally:
                call.cancel()

    async def add_template(
        self,
        image: AnyArray | bytes,
        labels: AnyArray,
        classes: Iterable[ClassDefinition],
        *,
        name: str = "",
    ) -> tuple[TemplateInfo, bool]:
        """See :meth:`vessa_client.VessaClient.add_template`."""
        definitions = list(classes)
        message = pb.AddTemplateRequest(
            image=convert.image_to_message(image),
            label_map=wire.encode_label_map(labels, len(definitions), field="label_map"),
            classes=[convert.class_to_message(c) for c in definitions],
            name=name,
        )
        response = await self._call(self._stub.AddTemplate, message)
        return convert.template_from_message(response.template), response.created

    async def list_templates(self) -> BankListing:
        """Templates and classes of the bank."""
        return convert.listing_from_message(
            await self._call(self._stub.ListTemplates, pb.ListTemplatesRequest())
        )

    async def delete_template(self, template_id: str) -> str:
        """Delete a template; returns the new version of the bank."""
        message = pb.DeleteTemplateRequest(template_id=template_id)
        response = await self._call(self._stub.DeleteTemplate, message)
        version: str = response.bank_version
        return version

    async def info(self) -> ServerInfo:
        """Model, bank and limits."""
        return convert.info_from_message(
            await self._call(self._stub.GetServerInfo, pb.GetServerInfoRequest())
        )

    async def healthy(self) -> bool:
        """Whether the server serves now; no retries, False where it cannot be reached."""
        try:
            response = await self._health.Check(
                health_pb2.HealthCheckRequest(), timeout=min(5.0, self.options.timeout)
            )
        except grpc.RpcError:
            return False
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    async def _segment_once(self, request: SegmentationRequest) -> pb.SegmentResponse:
        return await self._call(
            self._stub.Segment, convert.request_to_message(request), request.request_id
        )

    async def _call(
        self, method: Callable[..., Awaitable[T]], message: object, request_id: str = ""
    ) -> T:
        deadline = time.monotonic() + self.options.timeout
        for attempt in range(self.options.retry.attempts):
            remaining = deadline - time.monotonic()
            try:
                return await method(message, timeout=remaining, metadata=self.options.metadata())
            except grpc.RpcError as raised:
                error = to_error(raised, request_id)
                wait = self.options.retry.delay(attempt, random.random())
                last = attempt + 1 == self.options.retry.attempts
                out_of_time = time.monotonic() + wait > deadline
                if not isinstance(error, UnavailableError) or last or out_of_time:
                    raise error from raised
                await asyncio.sleep(wait)
        raise AssertionError("unreachable: the last attempt returns or raises")


async def _write(
    call: grpc.aio.StreamStreamCall[pb.SegmentRequest, pb.SegmentResponse],
    message: pb.SegmentRequest,
) -> None:
    try:
        await call.write(message)
    except grpc.RpcError as raised:
        raise to_error(raised) from raised
    except asyncio.InvalidStateError:
        raise UnavailableError("the server closed the stream") from None


async def _read(
    call: grpc.aio.StreamStreamCall[pb.SegmentRequest, pb.SegmentResponse],
) -> pb.SegmentResponse:
    try:
        response = await call.read()
    except grpc.RpcError as raised:
        raise to_error(raised) from raised
    if not isinstance(response, pb.SegmentResponse):
        raise UnavailableError("the server closed the stream")
    return response
