"""Who may ask for what, before a body is read."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.types import Scope

from vessa_client import AuthenticationError, VessaError
from vessa_server.api.errors import ForeignOriginError
from vessa_server.api.kserve.router import HEALTH
from vessa_server.api.monailabel.cors import PREFIX
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
        f"{PREFIX}auth/",
        f"{PREFIX}auth/token",
    }
)
_READING = ("GET", "HEAD", "OPTIONS")
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


def refuses(service: Service) -> Refuses:
    """Checks the token, and that no page of another site asks for a change."""

    def check(scope: Scope) -> VessaError | None:
        headers = {name.decode("latin-1"): v.decode("latin-1") for name, v in scope["headers"]}
        if scope["path"].startswith(PREFIX):
            if service.settings.token is None and not _viewer(headers, service.settings.origins):
                return ForeignOriginError(
                    "origin: a page of another host asks for scans, expected one of this host, or "
                    "named in VESSA_STUDIES_ORIGINS",
                    field="origin",
                )
        elif scope["method"] not in _READING and not _same_origin(headers):
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


def _viewer(headers: dict[str, str], named: tuple[str, ...]) -> bool:
    """Whether a page may use scans without a token: of this host, whatever the port, or named.

    Other pages could read scans through the browser of whoever looks at them. With a token they
    cannot, as browsers do not send it by themselves.
    """
    origin = headers.get("origin", "")
    if not origin or "*" in named or origin in named:
        return True
    try:
        page, server = (urlsplit(u).hostname for u in (origin, "//" + headers.get("host", "")))
    except ValueError:  # not an address
        return False
    return page is not None and (page in _THIS_MACHINE or page == server)


def _same_origin(headers: dict[str, str]) -> bool:
    """What browsers say of the page that asks; other clients say nothing."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2].lower() == headers.get("host", "").lower()
