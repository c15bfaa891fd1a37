"""REST transport: the same service for people, scripts and browsers."""

from __future__ import annotations

from importlib.metadata import version
from importlib.resources import files
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from vessa_client import AuthenticationError, InvalidRequestError, UnavailableError, VessaError
from vessa_server.api import errors
from vessa_server.api.kserve.rest_guard import KserveGuard
from vessa_server.api.kserve.router import HEALTH, kserve_router
from vessa_server.api.rest.body_limit import BodyLimit
from vessa_server.api.rest.guard import CLIENT_CLOSED, Guard, error_body
from vessa_server.api.rest.segment import segment_router
from vessa_server.api.rest.templates import templates_router
from vessa_server.api.service import Service
from vessa_server.bank import BankError

FORM_OVERHEAD = 1024 * 1024


def create_app(service: Service) -> ASGIApp:
    """Build the application around a service."""
    app = FastAPI(
        title="VESSA",
        version=version("vessa-server"),
        description="Pseudo-labels for medical images from a bank of annotated templates.",
    )
    _add_error_handlers(app)

    def authenticated(authorization: Annotated[str | None, Header()] = None) -> None:
        service.authenticate(authorization)

    guarded = [Depends(authenticated)]

    app.include_router(segment_router(service), dependencies=guarded)
    app.include_router(templates_router(service), dependencies=guarded)
    app.include_router(kserve_router(service, guarded))

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
        return HTMLResponse(files("vessa_server.api.page").joinpath("page.html").read_text())

    limit = 2 * service.settings.max_image_bytes + FORM_OVERHEAD
    limited = BodyLimit(app, max_bytes=limit, refuses=_refuses(service))
    return KserveGuard(limited, Guard(limited, service.metrics), service.metrics)


def _refuses(service: Service) -> Any:
    """Checks the token before a body is read."""

    def check(path: str, headers: dict[bytes, bytes]) -> VessaError | None:
        if path == "/" or path.startswith(("/health/", HEALTH, "/metrics", "/docs", "/openapi")):
            return None
        try:
            service.authenticate(headers.get(b"authorization", b"").decode("latin-1"))
        except AuthenticationError as error:
            return error
        return None

    return check


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(VessaError)
    @app.exception_handler(BankError)
    async def wrong_request(request: Request, raised: Exception) -> JSONResponse:
        error = errors.public(raised)
        headers = (
            {"Retry-After": f"{max(1, round(error.retry_after))}"} if error.retry_after else {}
        )
        return JSONResponse(error_body(error), errors.http_status(error), headers)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, raised: RequestValidationError) -> JSONResponse:
        first = raised.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:])
        error = InvalidRequestError(f"{field}: {first['msg']}", field=field)
        return JSONResponse(error_body(error), 422)

    @app.exception_handler(HTTPException)
    async def wrong_call(request: Request, raised: HTTPException) -> JSONResponse:
        codes = {404: "NOT_FOUND", 405: "UNIMPLEMENTED"}
        code = codes.get(raised.status_code, "INVALID_ARGUMENT")
        body = {"error": {"code": code, "message": str(raised.detail), "field": ""}}
        return JSONResponse(body, raised.status_code, raised.headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, raised: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_CLOSED)
