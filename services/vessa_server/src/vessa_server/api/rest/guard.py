"""What stands around the REST application, as plain ASGI: times, codes, and no leaks."""

from __future__ import annotations

import json
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vessa_client import VessaError
from vessa_server.api import errors
from vessa_server.api.metrics import Metrics

CLIENT_CLOSED = 499


class Guard:
    """Counts requests, answers errors that nobody handled, and forgets clients that have gone."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0
        head = scope["method"] == "HEAD"

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send({**message, "body": b""} if head and "body" in message else message)

        inner = {**scope, "method": "GET"} if head else scope
        try:
            await self.app(inner, receive, watched)
        except Exception as raised:
            if not status:
                error = errors.public(raised)
                status = errors.http_status(error)
                await _answer(send, error, status)
        finally:
            route = inner.get("route")
            method = f"{scope['method']} {getattr(route, 'path', 'other')}"
            self.metrics.requests.labels("http", method, str(status or CLIENT_CLOSED)).inc()
            self.metrics.latency.labels("http", method).observe(time.perf_counter() - start)


def error_body(error: VessaError) -> dict[str, Any]:
    """The form that every error has."""
    return {
        "error": {
            "code": errors.code_name(error),
            "message": error.message,
            "field": error.field,
        }
    }


async def _answer(send: Send, error: VessaError, status: int) -> None:
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(error_body(error)).encode()})
