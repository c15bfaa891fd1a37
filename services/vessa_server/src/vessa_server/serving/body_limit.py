"""Refuses request bodies over a limit before they are read into memory."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# What is read past the limit and thrown away: a connection that is closed over unread bytes is
# reset, and the client may never see the answer.
DRAINED_BYTES = 64 << 20


class BodyTooLargeError(Exception):
    """The body is over the limit."""


class BodyLimit:
    """ASGI middleware: counts bytes as they come, whatever Content-Length says."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, with a receive that stops at the limit."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        seen, started = 0, False

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.max_bytes:
                await _drain(message, receive)
                raise BodyTooLargeError
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, limited, watched)
        except BodyTooLargeError:
            if started:
                raise
            text = (
                b'{"error":{"code":"RESOURCE_EXHAUSTED","field":"image","message":"body: over '
                + str(self.max_bytes).encode()
                + b' bytes, the limit (VESSA_MAX_IMAGE_BYTES)"}}'
            )
            headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": 413, "headers": headers})
            await send({"type": "http.response.body", "body": text})


async def _drain(message: Message, receive: Receive) -> None:
    """Read and forget what follows a part of a body, up to a bound."""
    left = DRAINED_BYTES
    while message.get("more_body", False) and left > 0:
        message = await receive()
        left -= len(message.get("body", b""))
