"""What stands before every call: the token, and messages that can be decoded."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from vessa_client import InvalidRequestError, VessaError
from vessa_server.api.grpc.calls import Context, abort
from vessa_server.api.service import Service

Handler = Any  # grpc's RpcMethodHandler, which is a named tuple


class Door(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """Refuses strangers before a message of theirs is read, and messages that are none.

    Args:
        service: knows the token.
        services: full names of those that are guarded.
        open_to_all: their calls that need no token, as ``/service/call``.
    """

    def __init__(
        self, service: Service, services: Collection[str], open_to_all: Collection[str]
    ) -> None:
        self.service = service
        self.services = services
        self.open_to_all = open_to_all

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The handler of a call, with checks before it."""
        handler = await continuation(handler_call_details)
        call = handler_call_details.method
        if handler is None or call.strip("/").partition("/")[0] not in self.services:
            return handler
        if call not in self.open_to_all:
            metadata = dict(handler_call_details.invocation_metadata or ())
            try:
                self.service.authenticate(_text(metadata.get("authorization")))
            except VessaError as error:
                return _refusing(error)
        return _checked(handler)


def _text(value: str | bytes | None) -> str | None:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _refusing(error: VessaError) -> Handler:
    async def refuse(_: AsyncIterator[bytes], context: Context) -> None:
        await abort(context, error)

    return grpc.stream_stream_rpc_method_handler(refuse)


def _checked(handler: Handler) -> Handler:
    """The same with a deserializer that never fails, and a behaviour that sees where it did."""
    decode: Callable[[bytes], Any] = handler.request_deserializer

    def tolerant(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError:
            return InvalidRequestError("message: malformed, expected the contract's")

    async def unary(request: Any, context: Context) -> Any:
        if isinstance(request, VessaError):
            await abort(context, request)
        return await handler.unary_unary(request, context)

    async def stream(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        answers = handler.stream_stream(_well_formed(requests), context)
        async with contextlib.aclosing(answers):
            async for answer in answers:
                yield answer

    if handler.request_streaming:
        return handler._replace(request_deserializer=tolerant, stream_stream=stream)
    return handler._replace(request_deserializer=tolerant, unary_unary=unary)


async def _well_formed(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if isinstance(request, VessaError):
            raise request
        yield request
