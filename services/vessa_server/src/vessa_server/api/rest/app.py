"""REST transport: the same service for people, scripts and browsers."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from vessa_client import InvalidRequestError, VessaError
from vessa_server.api import errors
from vessa_server.api.kserve.rest_guard import KserveGuard
from vessa_server.api.kserve.router import kserve_router
from vessa_server.api.monailabel.cors import PREFIX, Cors
from vessa_server.api.monailabel.router import monai_router
from vessa_server.api.rest.access import refuses
from vessa_server.api.rest.body_limit import BodyLimit, Most
from vessa_server.api.rest.check import check_router
from vessa_server.api.rest.guard import CLIENT_CLOSED, Guard, error_body, error_headers
from vessa_server.api.rest.image import IMAGE_PATH, image_router
from vessa_server.api.rest.pages import pages_router
from vessa_server.api.rest.runs import runs_router
from vessa_server.api.rest.segment import segment_router
from vessa_server.api.rest.segmentation import segmentation_router
from vessa_server.api.rest.templates import templates_router
from vessa_server.api.rest.volume import VOLUME_PATH, volume_router
from vessa_server.api.service import Service
from vessa_server.bank import BankError

FORM_OVERHEAD = 1024 * 1024
_CODES = {401: "UNAUTHENTICATED", 404: "NOT_FOUND", 405: "UNIMPLEMENTED", 501: "UNIMPLEMENTED"}


def create_app(service: Service) -> ASGIApp:
    """Build the application around a service."""
    app = FastAPI(
        title="VESSA",
        version=version("vessa-server"),
        description="Pseudo-labels for medical images from a bank of annotated templates.",
        docs_url=None,  # its page and that of ReDoc are loaded from another site
        redoc_url=None,
        redirect_slashes=False,
    )
    _add_error_handlers(app)

    def authenticated(authorization: Annotated[str | None, Header()] = None) -> None:
        service.authenticate(authorization)

    guarded = [Depends(authenticated)]

    app.include_router(segment_router(service), dependencies=guarded)
    app.include_router(volume_router(service), dependencies=guarded)
    app.include_router(image_router(service), dependencies=guarded)
    app.include_router(segmentation_router(service), dependencies=guarded)
    app.include_router(templates_router(service), dependencies=guarded)
    app.include_router(check_router(service), dependencies=guarded)
    app.include_router(runs_router(service), dependencies=guarded)
    app.include_router(kserve_router(service, guarded))
    app.include_router(monai_router(service, guarded))
    app.include_router(pages_router())
    _add_server_routes(app, service, guarded)
    limited = BodyLimit(
        app,
        most=_body_limits(service),
        max_total=service.settings.max_queue_bytes,
        refuses=refuses(service),
    )
    service.when_closing.append(limited.close)
    guard = Cors(Guard(limited, service.metrics))
    return KserveGuard(limited, guard, service.metrics)


def _add_server_routes(app: FastAPI, service: Service, guarded: list[Any]) -> None:
    @app.get("/info", dependencies=guarded, tags=["server"])
    async def info() -> dict[str, Any]:
        """Model, device, bank, policy and limits."""
        found = await service.info()
        return {
            **vars(found),
            "classes": [vars(c) for c in found.classes],
            "limits": vars(found.limits),
        }

    @app.get("/health/live", tags=["server"])
    async def live() -> dict[str, str]:
        """The process runs."""
        return {"status": "live"}

    @app.get("/health/ready", tags=["server"])
    async def ready() -> dict[str, str]:
        """Requests are accepted; 503 while starting or stopping, or without a bank."""
        await service.check_ready()
        return {"status": "ready"}

    @app.get("/metrics", tags=["server"])
    def metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(service.metrics.expose(), media_type=CONTENT_TYPE_LATEST)


def _body_limits(service: Service) -> Callable[[str], Most]:
    image = Most(2 * service.settings.max_image_bytes + FORM_OVERHEAD, "VESSA_MAX_IMAGE_BYTES")
    volume = Most(service.settings.max_queue_bytes + FORM_OVERHEAD, "VESSA_MAX_QUEUE_BYTES")

    def of(path: str) -> Most:
        scans = path in (VOLUME_PATH, IMAGE_PATH) or path.startswith(PREFIX)
        return volume if scans else image

    return of


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(VessaError)
    @app.exception_handler(BankError)
    @app.exception_handler(Exception)
    async def failed(request: Request, raised: Exception) -> JSONResponse:
        return _answer(errors.public(raised))

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, raised: RequestValidationError) -> JSONResponse:
        first = raised.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:])
        error = InvalidRequestError(f"{field}: {first['msg']}", field=field)
        return _answer(errors.public(error))

    @app.exception_handler(HTTPException)
    async def wrong_call(request: Request, raised: HTTPException) -> JSONResponse:
        code = _CODES.get(raised.status_code, "INVALID_ARGUMENT")
        message = errors.printable(str(raised.detail), errors.MAX_MESSAGE)
        body = {"error": {"code": code, "message": message, "field": ""}}
        return JSONResponse(body, raised.status_code, raised.headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, raised: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_CLOSED)


def _answer(error: VessaError) -> JSONResponse:
    headers = {name.decode(): value.decode() for name, value in error_headers(error)}
    return JSONResponse(error_body(error), errors.http_status(error), headers)
