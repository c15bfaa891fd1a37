"""What happens to request bodies over the limit."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vessa_client import AuthenticationError, VessaError
from vessa_server.api.rest.body_limit import BodyLimit, Most


async def _reads_all(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body", False):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def _never_asks(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("refused before the application is asked")


def _limit(app: ASGIApp, *, most: int = 10, total: int = 100, **options: Any) -> BodyLimit:
    return BodyLimit(app, lambda path: Most(most, "SETTING"), total, **options)


def _post(
    limit: BodyLimit, chunks: list[int], headers: dict[bytes, bytes] | None = None
) -> tuple[int, int, str]:
    """Status, how many chunks were left unread, and what is said; then nothing more comes."""
    left = [
        {"type": "http.request", "body": b"x" * size, "more_body": index < len(chunks) - 1}
        for index, size in enumerate(chunks)
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        if not left:
            await asyncio.Event().wait()
        return left.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/pseudolabel",
        "headers": list((headers or {}).items()),
    }
    asyncio.run(asyncio.wait_for(limit(scope, receive, send), 5))
    assert [m["type"] for m in sent] == ["http.response.start", "http.response.body"]
    return int(sent[0]["status"]), len(left), sent[1]["body"].decode()


@pytest.mark.parametrize(
    ("chunks", "status", "unread"),
    [([10], 200, 0), ([11], 413, 0), ([6, 5, 5], 413, 1), ([11, 5, 5], 413, 2), ([5, 5], 200, 0)],
)
def test_a_body_is_read_to_its_end_or_its_limit(
    chunks: list[int], status: int, unread: int
) -> None:
    assert _post(_limit(_reads_all), chunks)[:2] == (status, unread)


def test_what_is_announced_over_the_limit_is_not_read_at_all() -> None:
    status, unread, words = _post(_limit(_never_asks), [5], {b"content-length": b"11"})
    assert (status, unread) == (413, 1)
    assert "SETTING" in words


def test_strangers_are_refused_before_their_body_is_read() -> None:
    def refuses(scope: Scope) -> VessaError | None:
        return AuthenticationError("authorization: expected a token", field="authorization")

    assert _post(_limit(_never_asks, refuses=refuses), [5])[:2] == (401, 1)


def test_a_body_that_does_not_come_is_answered() -> None:
    limit = _limit(_reads_all, seconds=0.05)
    status, _, words = _post(limit, [])
    assert status == 504
    assert "nothing came for 0.05 s" in words


def test_frameworks_that_hide_the_error_do_not_hide_the_refusal() -> None:
    async def hides(scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(VessaError):
            await receive()
        await send({"type": "http.response.start", "status": 400, "headers": []})
        await send({"type": "http.response.body", "body": b"There was an error"})

    assert _post(_limit(hides), [11])[0] == 413


async def test_bodies_of_others_leave_no_room_for_more() -> None:
    outcomes: list[int] = []
    entered, leave = asyncio.Event(), asyncio.Event()

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        entered.set()
        await leave.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    limit = _limit(waits, most=100, total=100)

    async def post(size: int) -> None:
        async def receive() -> Message:
            return {"type": "http.request", "body": b"x" * size, "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                outcomes.append(message["status"])
                if message["status"] == 429:
                    assert (b"retry-after", b"1") in message["headers"]

        await limit({"type": "http", "path": "/", "headers": []}, receive, send)

    first = asyncio.create_task(post(60))
    await entered.wait()
    await post(41)
    assert outcomes == [429]
    second = asyncio.create_task(post(40))
    leave.set()
    await asyncio.gather(first, second)
    await post(100)
    assert outcomes == [429, 200, 200, 200]
