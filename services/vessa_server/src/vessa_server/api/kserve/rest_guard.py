"""What stands around ``/v2``, as plain ASGI: metrics, and errors in the protocol's form."""

from __future__ import annotations

import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vessa_server.api.kserve import model
from vessa_server.api.metrics import Metrics
from vessa_server.api.rest.guard import Guard

PATH = "/v2"


class KserveGuard:
    """Counts requests below ``/v2`` apart, and says of errors what the protocol says of them.

    Args:
        app: answers all paths.
        otherwise: answers the paths that are not the protocol's.
        metrics: where requests are counted.
    """

    def __init__(self, app: ASGIApp, otherwise: ASGIApp, metrics: Metrics) -> None:
        self.guarded = Guard(app, metrics, model.TRANSPORT, _Rewriting)
        self.otherwise = otherwise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on."""
        ours = scope["type"] == "http" and f"{scope['path']}/".startswith(f"{PATH}/")
        await (self.guarded if ours else self.otherwise)(scope, receive, send)


class _Rewriting:
    """A ``send`` that holds an error back until its body is whole, and rewrites it."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.held: Message | None = None
        self.body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if message["status"] >= 400:
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


_OF_THE_BODY = (b"content-type", b"content-length")


def rewritten(body: bytes) -> bytes:
    """An error of the REST transport as ``{"error": message}``."""
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, LookupError, TypeError):  # such as the framework's own
        message = body.decode(errors="replace")
    return json.dumps({"error": message}).encode()
