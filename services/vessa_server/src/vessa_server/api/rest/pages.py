"""The pages and their files, with what a browser must know of them."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from fastapi import APIRouter, Response

from vessa_client import NotFoundError

FILES_PATH = "/page/"
_FOLDER = files("vessa_server.api.page")
_KINDS = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
# Nothing inline, nothing of other hosts, no text that becomes code.
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ]
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def pages_router() -> APIRouter:
    """``/``, ``/docs`` and their files, whose address changes with their content."""
    found = {
        item.name: item.read_bytes()
        for item in _FOLDER.iterdir()
        if item.name.rpartition(".")[2] in _KINDS
    }
    digest = hashlib.sha256(b"".join(found[name] for name in sorted(found))).hexdigest()[:16]
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def page() -> Response:
        return _page("page.html", digest)

    @router.get("/docs")
    async def docs() -> Response:
        return _page("docs.html", digest)

    @router.get(f"{FILES_PATH}{digest}/{{name}}")
    async def file(name: str) -> Response:
        if name not in found:
            raise NotFoundError(f"name: no file {name!r} of the page", field="name")
        kind = _KINDS[name.rpartition(".")[2]]
        kept = {"Cache-Control": "public, max-age=31536000, immutable"}
        return Response(found[name], media_type=kind, headers=HEADERS | kept)

    return router


def _page(name: str, digest: str) -> Response:
    text = _FOLDER.joinpath(name).read_text().replace("{files}", f"page/{digest}")
    return Response(text, media_type="text/html", headers=HEADERS | {"Cache-Control": "no-cache"})
