"""What happens to request bodies over the limit."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message, Receive, Scope, Send

from vessa_server.api.rest import body_limit
from vessa_server.api.rest.body_limit import BodyLimit


async def _reads_all(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body", False):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def _post(chunks: list[int], max_bytes: int) -> tuple[int, int]:
    """Status, and how many chunks were left unread; reading past the end waits for ever."""
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

    limit = BodyLimit(_reads_all, max_bytes)
    asyncio.run(
        asyncio.wait_for(
            limit({"type": "http", "path": "/pseudolabel", "headers": []}, receive, send), 5
        )
    )
    return int(sent[0]["status"]), len(left)


@pytest.mark.parametrize(
    ("chunks", "status"),
    [([10], 200), ([11], 413), ([6, 5], 413), ([11, 5, 5], 413), ([5, 5], 200)],
)
def test_a_body_is_read_to_its_end_and_no_further(chunks: list[int], status: int) -> None:
    assert _post(chunks, max_bytes=10) == (status, 0)


def test_what_is_read_past_the_limit_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limit, "DRAINED_BYTES", 20)
    assert _post([11] + [10] * 5, max_bytes=10) == (413, 3)
