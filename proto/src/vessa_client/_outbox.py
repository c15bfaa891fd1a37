"""What is to be sent over an open stream, each message from its time on.

gRPC takes the messages in a thread or task of its own, so that writing never keeps answers
from being read: a server may stop reading until they are.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator

from vessa.v1 import pseudo_label_pb2 as pb
from vessa_client._streams import Outgoing


class Outbox:
    """For threads: iterating waits for the next message that is due, until it is closed."""

    def __init__(self, items: Iterable[Outgoing]) -> None:
        # The number decides between messages of one time, which have no order of their own.
        self._heap: list[tuple[float, int, pb.SegmentRequest]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        for item in items:
            self.put(item)

    def put(self, item: Outgoing) -> None:
        """Send a message after its delay."""
        with self._changed:
            entry = (time.monotonic() + item.delay, next(self._numbers), item.message)
            heapq.heappush(self._heap, entry)
            self._changed.notify()

    def close(self) -> None:
        """Send nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def __iter__(self) -> Iterator[pb.SegmentRequest]:
        while (message := self._next()) is not None:
            yield message

    def _next(self) -> pb.SegmentRequest | None:
        with self._changed:
            while not self._closed:
                delay = self._heap[0][0] - time.monotonic() if self._heap else None
                if delay is not None and delay <= 0:
                    return heapq.heappop(self._heap)[2]
                self._changed.wait(delay)
            return None


class AsyncOutbox:
    """The same for asyncio, within a running loop."""

    def __init__(self, items: Iterable[Outgoing]) -> None:
        self._due: asyncio.Queue[pb.SegmentRequest | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        for item in items:
            self.put(item)

    def put(self, item: Outgoing) -> None:
        """Send a message after its delay."""
        if item.delay > 0:
            self._loop.call_later(item.delay, self._due.put_nowait, item.message)
        else:
            self._due.put_nowait(item.message)

    def close(self) -> None:
        """Send nothing more."""
        self._due.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[pb.SegmentRequest]:
        while (message := await self._due.get()) is not None:
            yield message
