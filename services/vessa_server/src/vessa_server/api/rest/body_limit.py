"""Refuses bodies before they are read: those over the limit, and those of strangers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vessa_client import DeadlineError, OverloadedError, VessaError
from vessa_server.api import errors
from vessa_server.api.rest.guard import error_body

# What is read past the limit and thrown away: a connection that is closed over unread bytes is
# reset, and the client may never see the answer.
DRAINED_BYTES = 64 << 20
# Longest silence while a body is sent.
UPLOAD_SECONDS = 30.0
# An error for a path and headers, or None.
Refuses = Callable[[str, dict[bytes, bytes]], VessaError | None]


class BodyTooLargeError(Exception):
    """The body is over the limit."""


class BodyTooSlowError(Exception):
    """The rest of the body does not come."""


class BodyLimit:
    """ASGI middleware: counts bytes as they come, whatever Content-Length says."""

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int,
        refuses: Refuses | None = None,
        seconds: float = UPLOAD_SECONDS,
    ) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.seconds = seconds
        self.refuses = refuses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, with a receive that stops at the limit."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        refusal = self.refuses(scope["path"], headers) if self.refuses else None
        if refusal is not None:
            await _refuse(refusal, receive, send)
            return
        announced = headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self.max_bytes:
            await _refuse(self._too_large(), receive, send)
            return
        seen, started, whole = 0, False, False

        async def limited() -> Message:
            nonlocal seen, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout(self.seconds):
                    message = await receive()
            except TimeoutError:
                raise BodyTooSlowError from None
            whole = not message.get("more_body", False)
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
        except (BodyTooLargeError, BodyTooSlowError) as error:
            if started:
                raise
            late = DeadlineError(f"body: nothing came for {self.seconds:g} s", field="body")
            slow = isinstance(error, BodyTooSlowError)
            await _respond(late if slow else self._too_large(), send)

    def _too_large(self) -> OverloadedError:
        return OverloadedError(
            f"body: over {self.max_bytes} bytes, the limit (VESSA_MAX_IMAGE_BYTES)", field="image"
        )


async def _refuse(error: VessaError, receive: Receive, send: Send) -> None:
    await _drain({"more_body": True}, receive)
    await _respond(error, send)


async def _respond(error: VessaError, send: Send) -> None:
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    status = errors.http_status(error)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(error_body(error)).encode()})


async def _drain(message: Message, receive: Receive) -> None:
    """Read and forget what follows a part of a body, up to a bound."""
    left = DRAINED_BYTES
    while message.get("more_body", False) and left > 0:
        message = await receive()
        left -= len(message.get("body", b""))
