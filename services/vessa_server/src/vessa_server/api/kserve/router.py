"""REST: ``/v2``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.params import Depends as Dependency

from vessa_client import InvalidRequestError
from vessa_server.api.kserve import model, rest_body
from vessa_server.api.kserve.inference import infer
from vessa_server.api.rest.segment import unless_disconnected
from vessa_server.api.service import Caller, Service
from vessa_server.scheduler.scheduler import Priority

HEALTH = "/v2/health"
ONE_MODEL = "/v2/models/{model}"
ONE_VERSION = "/v2/models/{model}/versions/{version}"
INFER_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"type": "object", "required": ["inputs"]}},
            "application/octet-stream": {},
        },
    }
}


def kserve_router(service: Service, guarded: Sequence[Dependency]) -> APIRouter:
    """The routes, around a service; all but health have the dependencies ``guarded``."""
    router = APIRouter(tags=["Open Inference Protocol"])
    for_model = [*guarded, Depends(_check_model)]

    @router.get(f"{HEALTH}/live")
    async def live() -> dict[str, bool]:
        """The process runs."""
        return {"live": True}

    @router.get(f"{HEALTH}/ready")
    async def ready() -> dict[str, bool]:
        """Requests are accepted; 503 while starting or stopping, or without a bank."""
        await service.check_ready()
        return {"ready": True}

    @router.get("/v2", dependencies=guarded)
    async def server_metadata() -> dict[str, Any]:
        """Name, version, and which extensions are offered."""
        return {
            "name": model.SERVER,
            "version": version("vessa-server"),
            "extensions": list(model.EXTENSIONS),
        }

    @router.get(ONE_MODEL, dependencies=for_model)
    @router.get(ONE_VERSION, dependencies=for_model)
    async def model_metadata() -> dict[str, Any]:
        """The model's tensors."""
        return {
            "name": model.MODEL,
            "versions": [model.VERSION],
            "platform": model.PLATFORM,
            "inputs": [_described(spec) for spec in model.INPUTS],
            "outputs": [_described(spec) for spec in model.OUTPUTS],
        }

    @router.get(f"{ONE_MODEL}/ready", dependencies=for_model)
    @router.get(f"{ONE_VERSION}/ready", dependencies=for_model)
    async def model_ready() -> dict[str, Any]:
        """The model takes requests; 503 while starting or stopping, or without a bank."""
        await service.check_ready()
        return {"name": model.MODEL, "ready": True}

    @router.post(f"{ONE_MODEL}/infer", dependencies=for_model, openapi_extra=INFER_SCHEMA)
    @router.post(f"{ONE_VERSION}/infer", dependencies=for_model, openapi_extra=INFER_SCHEMA)
    async def model_infer(request: Request) -> Response:
        """Segment one image."""
        encoding = request.headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            raise InvalidRequestError(
                f"content-encoding: {encoding[:80]!r}, expected none", field="content-encoding"
            )
        length = request.headers.get(rest_body.HEADER_LENGTH)
        body = await request.body()
        host = request.client.host if request.client else ""
        caller = Caller.within(None, host, Priority.INTERACTIVE)
        answer = infer(service, lambda: rest_body.read(body, length), rest_body.render, caller)
        return await unless_disconnected(request, answer)

    return router


def _check_model(request: Request) -> None:
    model.check_model(request.path_params["model"], request.path_params.get("version", ""))


def _described(spec: model.TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatypes[0], "shape": list(spec.shape)}
