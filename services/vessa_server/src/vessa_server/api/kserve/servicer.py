"""gRPC: ``inference.GRPCInferenceService``, with tritonclient's messages.

A copy of the protocol of our own would collide with tritonclient's in one process.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, NoReturn, TypeVar

import grpc
from tritonclient.grpc import service_pb2 as pb

from vessa_client import UnavailableError, VessaError
from vessa_server.api import errors
from vessa_server.api.kserve import messages, model
from vessa_server.api.kserve.inference import infer
from vessa_server.api.service import Caller, Service
from vessa_server.scheduler.scheduler import Priority

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]
SERVICE_NAME: Final[str] = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name


def add_to_server(service: Service, server: grpc.aio.Server) -> None:
    """Offer the calls of the protocol; gRPC answers the others with UNIMPLEMENTED."""
    calls = InferenceCalls(service)
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            calls.handler(name, answer, open_to_all=name in ("ServerLive", "ServerReady")),
            request_deserializer=getattr(pb, f"{name}Request").FromString,
            response_serializer=getattr(pb, f"{name}Response").SerializeToString,
        )
        for name, answer in calls.by_name.items()
    }
    handler = grpc.method_handlers_generic_handler(SERVICE_NAME, handlers)
    server.add_generic_rpc_handlers((handler,))


class InferenceCalls:
    """Translates messages; everything else is in :class:`Service`."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.by_name: dict[str, Callable[[Any, Context], Awaitable[Any]]] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
        }

    def handler(
        self,
        name: str,
        answer: Callable[[Any, Context], Awaitable[T]],
        *,
        open_to_all: bool,
    ) -> Callable[[Any, Context], Awaitable[T]]:
        """A call with the token checked unless it is open, errors as status codes, and metrics."""

        async def call(request: Any, context: Context) -> T:
            code, start = "CANCELLED", time.perf_counter()
            try:
                if not open_to_all:
                    self.service.authenticate(_authorization(context))
                result = await answer(request, context)
            except Exception as raised:
                error = errors.public(raised)
                code = errors.code_name(error)
                await _abort(context, error)
            else:
                code = "OK"
                return result
            finally:
                metrics = self.service.metrics
                metrics.requests.labels(model.TRANSPORT, name, code).inc()
                metrics.latency.labels(model.TRANSPORT, name).observe(time.perf_counter() - start)

        return call

    async def _server_live(self, request: Any, context: Context) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def _server_ready(self, request: Any, context: Context) -> Any:
        return pb.ServerReadyResponse(ready=await self._ready())

    async def _model_ready(self, request: Any, context: Context) -> Any:
        model.check_model(request.name, request.version)
        return pb.ModelReadyResponse(ready=await self._ready())

    async def _ready(self) -> bool:
        try:
            await self.service.check_ready()
        except UnavailableError:
            return False
        return True

    async def _server_metadata(self, request: Any, context: Context) -> Any:
        return messages.server_metadata()

    async def _model_metadata(self, request: Any, context: Context) -> Any:
        model.check_model(request.name, request.version)
        return messages.model_metadata()

    async def _model_infer(self, request: Any, context: Context) -> Any:
        host = context.peer().rpartition(":")[0]
        caller = Caller.within(context.time_remaining(), host, Priority.INTERACTIVE)
        return await infer(self.service, lambda: messages.read(request), messages.render, caller)


def _authorization(context: Context) -> str | None:
    value = dict(context.invocation_metadata() or ()).get("authorization")
    return value.decode() if isinstance(value, bytes) else value


async def _abort(context: Context, error: VessaError) -> NoReturn:
    context.set_trailing_metadata(errors.grpc_metadata(error))
    await context.abort(errors.grpc_status(error), error.message)
    raise AssertionError("unreachable: abort raises")
