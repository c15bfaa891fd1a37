"""Refuses bodies before they are read: those over the limit, and those of strangers.

Who is refused is answered at once; the server underneath reads the rest of the body and throws
it away, so that the connection is not reset before its answer is read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import NamedTuple

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vessa_client import DeadlineError, OverloadedError, UnavailableError, VessaError
from vessa_server.api.rest.guard import respond
from vessa_server.api.room import Room, Share

# Longest silence while a body is sent.
UPLOAD_SECONDS = 30.0
# An error for a request, or None.
Refuses = Callable[[Scope], VessaError | None]


class Most(NamedTuple):
    """The limit of a body, and the setting that it follows from."""

    bytes: int
    setting: str


class BodyLimit:
    """ASGI middleware: counts bytes as they come, whatever Content-Length says.

    Args:
        app: gets the requests.
        most: of one body, by path.
        max_total: of all bodies of requests that are under way; a single one is let in.
        refuses: checks a request before its body is read.
        seconds: longest silence while a body is sent.
    """

    def __init__(
        self,
        app: ASGIApp,
        most: Callable[[str], Most],
        max_total: int,
        refuses: Refuses | None = None,
        seconds: float = UPLOAD_SECONDS,
    ) -> None:
        self.app = app
        self.most = most
        self.refuses = refuses
        self.seconds = seconds
        self._room = Room(max_total, "body")
        self._closed = False
        self._waits: set[asyncio.Timeout] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, with a receive that stops at the limits."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await respond(refusal, send)
            return
        with Share(self._room) as share:
            await self._answer(scope, share, receive, send)

    async def _answer(self, scope: Scope, share: Share, receive: Receive, send: Send) -> None:
        body = _Body(self, self.most(scope["path"]), share, receive, send)
        try:
            await self.app(scope, body.receive, body.send)
        except Exception:
            if body.refusal is None:
                raise
        if body.refusal is not None and not body.answered:
            goes_on = isinstance(body.refusal, OverloadedError)
            await respond(body.refusal, send, () if goes_on else [(b"connection", b"close")])

    def close(self) -> None:
        """Wait for no body any more: the server stops."""
        self._closed = True
        for wait in self._waits:
            with contextlib.suppress(RuntimeError):  # it ends at this moment
                wait.reschedule(0)

    async def next_part(self, receive: Receive) -> Message:
        """What comes next of a body.

        Raises:
            DeadlineError: nothing does.
            UnavailableError: the server stops.
        """
        try:
            async with asyncio.timeout(0 if self._closed else self.seconds) as wait:
                self._waits.add(wait)
                return await receive()
        except TimeoutError:
            if self._closed:
                raise UnavailableError("the server is stopping", retry_after=1.0) from None
            raise DeadlineError(
                f"body: nothing came for {self.seconds:g} s, expected the rest of it",
                field="body",
            ) from None
        finally:
            self._waits.discard(wait)

    def _refusal(self, scope: Scope) -> VessaError | None:
        error = self.refuses(scope) if self.refuses else None
        if error is not None:
            return error
        most = self.most(scope["path"])
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > most.bytes:
            return _too_large(most)
        return None


class _Body:
    """A body on its way, and what became of it.

    Attributes:
        refusal: why the rest is not read; frameworks may have their own words for that.
        answered: the application's answer has begun.
    """

    def __init__(
        self, limit: BodyLimit, most: Most, share: Share, receive: Receive, send: Send
    ) -> None:
        self._limit, self._most, self._share = limit, most, share
        self._receive, self._send = receive, send
        self._whole = False
        self.refusal: VessaError | None = None
        self.answered = False

    async def receive(self) -> Message:
        """The next part.

        Raises:
            VessaError: it is refused, or does not come.
        """
        if self._whole:
            return await self._receive()
        try:
            return await self._next()
        except VessaError as error:
            self.refusal = error
            raise

    async def send(self, message: Message) -> None:
        """Pass on what is answered, unless the body was refused."""
        if self.refusal is not None and not self.answered:
            return
        self.answered = True
        await self._send(message)

    async def _next(self) -> Message:
        message = await self._limit.next_part(self._receive)
        size = len(message.get("body", b""))
        if self._share.size + size > self._most.bytes:
            raise _too_large(self._most)
        self._share.take(size)
        self._whole = not message.get("more_body", False)
        return message


def _too_large(most: Most) -> OverloadedError:
    return OverloadedError(
        f"body: expected at most {most.bytes} bytes ({most.setting})", field="body"
    )
