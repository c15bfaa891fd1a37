"""What stands around the REST application, as plain ASGI: times, codes, and no leaks."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vessa_client import AuthenticationError, VessaError
from vessa_server.api import errors
from vessa_server.api.metrics import Metrics

Headers = Iterable[tuple[bytes, bytes]]
CLIENT_CLOSED = 499
# Others are counted as one: whoever asks must not be able to make up counters.
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Guard:
    """Counts requests, answers errors that nobody handled, and forgets clients that have gone.

    Args:
        app: answers the requests.
        metrics: where they are counted.
        transport: under which name.
        form: puts answers, such as errors, into the form of a protocol.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        transport: str = "http",
        form: Callable[[Send], Send] | None = None,
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.transport = transport
        self.form = form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0
        head = scope["method"] == "HEAD"
        answer = _without_body(send) if head else send
        if self.form is not None:
            answer = self.form(answer)

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await answer(message)

        inner = {**scope, "method": "GET"} if head else scope
        try:
            await self.app(inner, receive, watched)
        except Exception as raised:
            error = errors.public(raised)
            if not status:
                await respond(error, watched)
        finally:
            method = method_label(scope["method"], inner)
            code = str(status or CLIENT_CLOSED)
            self.metrics.requests.labels(self.transport, method, code).inc()
            seconds = time.perf_counter() - start
            self.metrics.latency.labels(self.transport, method).observe(seconds)


def _without_body(send: Send) -> Send:
    async def headers_only(message: Message) -> None:
        await send({**message, "body": b""} if "body" in message else message)

    return headers_only


def method_label(method: str, scope: Scope) -> str:
    """Method and route of a request, for metrics."""
    known = method if method in METHODS else "other"
    return f"{known} {getattr(scope.get('route'), 'path', 'other')}"


def error_body(error: VessaError) -> dict[str, Any]:
    """The form that every error has."""
    return {
        "error": {
            "code": errors.code_name(error),
            "message": error.message,
            "field": error.field,
        }
    }


async def respond(error: VessaError, send: Send, headers: Headers = ()) -> None:
    """Answer with an error."""
    body = json.dumps(error_body(error)).encode()
    described = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *headers,
        *error_headers(error),
    ]
    start = {"status": errors.http_status(error), "headers": described}
    await send({"type": "http.response.start", **start})
    await send({"type": "http.response.body", "body": body})


def error_headers(error: VessaError) -> list[tuple[bytes, bytes]]:
    """When to try again, and how to say who one is."""
    headers = []
    if error.retry_after:
        headers.append((b"retry-after", str(max(1, math.ceil(error.retry_after))).encode()))
    if isinstance(error, AuthenticationError):
        headers.append((b"www-authenticate", b"Bearer"))
    return headers
