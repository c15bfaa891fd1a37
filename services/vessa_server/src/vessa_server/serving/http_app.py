"""REST transport: the same service for people, scripts and browsers."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from importlib.resources import files
from typing import Annotated, Any

import structlog
from fastapi import Depends, FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from vessa_client import (
    UnavailableError,
    VessaError,
)
from vessa_server.bank import BankError
from vessa_server.serving import errors
from vessa_server.serving.body_limit import BodyLimit
from vessa_server.serving.http_segment import segment_router
from vessa_server.serving.http_templates import templates_router
from vessa_server.serving.service import Service

log = structlog.get_logger(__name__)
FORM_OVERHEAD = 1024 * 1024


def create_app(service: Service) -> FastAPI:
    """Build the application around a service."""
    app = FastAPI(
        title="VESSA",
        version=version("vessa-server"),
        description="Pseudo-labels for medical images from a bank of annotated templates.",
    )
    app.add_middleware(BodyLimit, max_bytes=2 * service.settings.max_image_bytes + FORM_OVERHEAD)
    _add_error_handlers(app)

    @app.middleware("http")
    async def measure(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        start = time.perf_counter()
        response = await call_next(request)
        route = request.scope.get("route")
        method = f"{request.method} {getattr(route, 'path', 'other')}"
        service.metrics.requests.labels("http", method, str(response.status_code)).inc()
        service.metrics.latency.labels("http", method).observe(time.perf_counter() - start)
        return response

    def authenticated(authorization: Annotated[str | None, Header()] = None) -> None:
        service.authenticate(authorization)

    guarded = [Depends(authenticated)]

    app.include_router(segment_router(service), dependencies=guarded)
    app.include_router(templates_router(service), dependencies=guarded)

    @app.get("/info", dependencies=guarded, tags=["server"])
    async def info() -> dict[str, Any]:
        """Model, bank and limits."""
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
        """Requests are accepted; 503 while starting or stopping."""
        if not service.ready:
            raise UnavailableError("the server is starting or stopping")
        return {"status": "ready"}

    @app.get("/metrics", tags=["server"])
    def metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(service.metrics.expose(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(files("vessa_server.serving").joinpath("page.html").read_text())

    return app


def _add_error_handlers(app: FastAPI) -> None:
    def body(code: str, message: str, field: str = "") -> dict[str, Any]:
        return {"error": {"code": code, "message": message, "field": field}}

    @app.exception_handler(VessaError)
    async def wrong_request(request: Request, error: VessaError) -> JSONResponse:
        headers = (
            {"Retry-After": f"{max(1, round(error.retry_after))}"} if error.retry_after else {}
        )
        return JSONResponse(
            body(errors.code_name(error), error.message, error.field),
            errors.http_status(error),
            headers,
        )

    @app.exception_handler(BankError)
    async def bank_unreadable(request: Request, error: BankError) -> JSONResponse:
        log.error("bank.unreadable", error=str(error))
        return JSONResponse(body(errors.INTERNAL, str(error)), 500)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:])
        return JSONResponse(body("INVALID_ARGUMENT", f"{field}: {first['msg']}", field), 422)
