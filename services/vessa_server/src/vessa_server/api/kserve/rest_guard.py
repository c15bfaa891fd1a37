"""What stands around ``/v2``, as plain ASGI: metrics, and errors in the protocol's form."""

from __future__ import annotations

import json
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vessa_client import VessaError
from vessa_server.api import errors
from vessa_server.api.kserve import model
from vessa_server.api.metrics import Metrics
from vessa_server.api.rest.guard import CLIENT_CLOSED, error_body

PATH = "/v2"


class KserveGuard:
    """Counts requests below ``/v2``, and says of their errors what the protocol says of them.

    Args:
        app: answers all paths.
        otherwise: answers the paths that are not the protocol's.
        metrics: where requests are counted.
    """

    def __init__(self, app: ASGIApp, otherwise: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.otherwise = otherwise
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on."""
        if scope["type"] != "http" or not f"{scope['path']}/".startswith(f"{PATH}/"):
            await self.otherwise(scope, receive, send)
            return
        start, answer = time.perf_counter(), _Answer(send)
        try:
            await self.app(scope, receive, answer)
        except Exception as raised:
            error = errors.public(raised)
            if not answer.status:
                await answer.refuse(error)
        finally:
            method = f"{scope['method']} {getattr(scope.get('route'), 'path', 'other')}"
            code = str(answer.status or CLIENT_CLOSED)
            self.metrics.requests.labels(model.TRANSPORT, method, code).inc()
            seconds = time.perf_counter() - start
            self.metrics.latency.labels(model.TRANSPORT, method).observe(seconds)


class _Answer:
    """A ``send`` that holds an error back until its body is whole, and rewrites it."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.status = 0
        self.held: Message | None = None
        self.body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.status >= 400:
                self.held = message
                return
        elif self.held is not None:
            self.body += message.get("body", b"")
            if message.get("more_body", False):
                return
            body = rewritten(self.body)
            headers = [pair for pair in self.held["headers"] if pair[0] not in _OF_THE_BODY]
            headers += [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
            ]
            await self.send({**self.held, "headers": headers})
            message, self.held = {**message, "body": body}, None
        await self.send(message)

    async def refuse(self, error: VessaError) -> None:
        """Answer with an error."""
        status = errors.http_status(error)
        await self({"type": "http.response.start", "status": status, "headers": _CLOSE})
        await self({"type": "http.response.body", "body": json.dumps(error_body(error)).encode()})


_OF_THE_BODY = (b"content-type", b"content-length")
_CLOSE = [(b"connection", b"close")]


def rewritten(body: bytes) -> bytes:
    """An error of the REST transport as ``{"error": message}``."""
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, LookupError, TypeError):  # such as the framework's own
        message = body.decode(errors="replace")
    return json.dumps({"error": message}).encode()
