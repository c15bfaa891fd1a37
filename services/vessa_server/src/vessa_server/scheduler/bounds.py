"""How much may wait or run, on all devices together."""

from __future__ import annotations

import threading
from typing import Protocol

from vessa_client import OverloadedError
from vessa_server.scheduler.fair_queue import Priority
from vessa_server.scheduler.tasks import Ticket

# Seconds of one request before any was answered, and the shortest time to wait for a place.
FIRST_PACE, SHORTEST_RETRY = 0.05, 0.05
# Share of the newest request in the recent seconds of one.
NEWEST = 0.125


class QueueObserver(Protocol):
    """Metrics of the queue."""

    def observe_queue(self, requests: int, nbytes: int) -> None:
        """How much is waiting or running."""
        ...


class Bounds:
    """Places for requests, and for the bytes of their arrays. Thread-safe."""

    def __init__(
        self,
        max_requests: int,
        max_bytes: int,
        *,
        devices: int = 1,
        observer: QueueObserver | None = None,
    ) -> None:
        """Nothing waits yet.

        Args:
            max_requests: waiting or running, of a priority and more urgent ones; more are
                refused. So what is less urgent takes nobody's place.
            max_bytes: of the arrays of those.
            devices: that requests share.
            observer: of both.
        """
        self.max_requests = max_requests
        self.max_bytes = max_bytes
        self._devices = devices
        self._observer = observer
        # Recent seconds of one request on its device.
        self._pace = FIRST_PACE
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(Priority, 0)
        self._bytes = 0

    @property
    def empty(self) -> bool:
        """Whether nothing waits or runs."""
        return not (self._bytes or any(self._counts.values()))

    def check(self, ticket: Ticket) -> None:
        """Refuse a request that would not fit.

        Raises:
            OverloadedError: the queue is full; carries when to try again.
        """
        count = sum(self._counts[other] for other in Priority if other <= ticket.priority)
        wait = max(SHORTEST_RETRY, self._pace / self._devices * sum(self._counts.values()))
        if count >= self.max_requests:
            raise OverloadedError(
                f"queue: full with {count} requests, try again in {wait:.2f} s", retry_after=wait
            )
        if self._bytes and self._bytes + ticket.nbytes > self.max_bytes:
            raise OverloadedError(
                f"queue: {self._bytes} bytes wait, at most {self.max_bytes} may "
                f"(VESSA_MAX_QUEUE_BYTES); try again in {wait:.2f} s",
                retry_after=wait,
            )

    def enter(self, ticket: Ticket) -> None:
        """Take a place; see :meth:`check`."""
        with self._lock:
            self.check(ticket)
            self._add(ticket, 1)

    def leave(self, ticket: Ticket) -> None:
        """Give a place back."""
        with self._lock:
            self._add(ticket, -1)

    def answered(self, seconds: float) -> None:
        """Note how long a device worked for a request that is answered now."""
        with self._lock:
            self._pace += NEWEST * (seconds - self._pace)

    def _add(self, ticket: Ticket, sign: int) -> None:
        self._counts[ticket.priority] += sign
        self._bytes += sign * ticket.nbytes
        if self._observer is not None:
            self._observer.observe_queue(sum(self._counts.values()), self._bytes)
