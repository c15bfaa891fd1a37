"""Who may ask for what, before a body is read."""

from __future__ import annotations

from starlette.types import Scope

from vessa_client import AuthenticationError, VessaError
from vessa_server.api.errors import ForeignOriginError
from vessa_server.api.kserve.router import HEALTH
from vessa_server.api.rest.body_limit import Refuses
from vessa_server.api.rest.pages import FILES_PATH
from vessa_server.api.service import Service

OPEN_PATHS = frozenset(
    {
        "/",
        "/docs",
        "/openapi.json",
        "/metrics",
        "/health/live",
        "/health/ready",
        f"{HEALTH}/live",
        f"{HEALTH}/ready",
    }
)
_READING = ("GET", "HEAD", "OPTIONS")


def refuses(service: Service) -> Refuses:
    """Checks the token, and that no page of another site asks for a change."""

    def check(scope: Scope) -> VessaError | None:
        headers = {name.decode("latin-1"): v.decode("latin-1") for name, v in scope["headers"]}
        if scope["method"] not in _READING and not _same_origin(headers):
            return ForeignOriginError(
                "origin: a page of another site asks, expected this server's own or no browser",
                field="origin",
            )
        if scope["path"] in OPEN_PATHS or scope["path"].startswith(FILES_PATH):
            return None
        try:
            service.authenticate(headers.get("authorization"))
        except AuthenticationError as error:
            return error
        return None

    return check


def _same_origin(headers: dict[str, str]) -> bool:
    """What browsers say of the page that asks; other clients say nothing."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2].lower() == headers.get("host", "").lower()
