"""gRPC: ``inference.GRPCInferenceService``, with tritonclient's messages.

A copy of the protocol of our own would collide with tritonclient's in one process.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import grpc
from tritonclient.grpc import service_pb2 as pb

from vessa_client import UnavailableError
from vessa_server.api.grpc import calls
from vessa_server.api.grpc.calls import Context
from vessa_server.api.kserve import messages, model
from vessa_server.api.kserve.inference import infer
from vessa_server.api.service import Service
from vessa_server.scheduler.scheduler import Priority

T = TypeVar("T")
SERVICE_NAME: Final[str] = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
# Calls that need no token, as in REST.
OPEN_CALLS: Final = (f"/{SERVICE_NAME}/ServerLive", f"/{SERVICE_NAME}/ServerReady")


def add_to_server(service: Service, server: grpc.aio.Server) -> None:
    """Offer the calls of the protocol; gRPC answers the others with UNIMPLEMENTED."""
    servicer = InferenceCalls(service)
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            servicer.handler(name, answer),
            request_deserializer=getattr(pb, f"{name}Request").FromString,
            response_serializer=getattr(pb, f"{name}Response").SerializeToString,
        )
        for name, answer in servicer.by_name.items()
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
        self, name: str, answer: Callable[[Any, Context], Awaitable[T]]
    ) -> Callable[[Any, Context], Awaitable[T]]:
        """A call with errors as status codes, and metrics."""

        async def call(request: Any, context: Context) -> T:
            return await calls.answered(
                self.service.metrics,
                model.TRANSPORT,
                name,
                context,
                lambda: answer(request, context),
            )

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
        caller = calls.caller_of(context, Priority.INTERACTIVE)
        return await infer(self.service, lambda: messages.read(request), messages.render, caller)
