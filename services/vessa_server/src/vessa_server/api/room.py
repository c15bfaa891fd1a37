"""Room in memory for what requests hold before and beside the queue."""

from __future__ import annotations

import threading

from vessa_client import OverloadedError

# When to try again where others take all of the room.
RETRY_SECONDS = 1.0


class Room:
    """A bound on the bytes that requests hold together. Thread-safe.

    Args:
        max_bytes: of all together; a request that is alone is let in whatever its size.
        name: of what is held, in errors.
    """

    def __init__(self, max_bytes: int, name: str) -> None:
        self.max_bytes = max_bytes
        self.name = name
        self._held = 0
        self._lock = threading.Lock()

    @property
    def held(self) -> int:
        """Bytes held now."""
        return self._held

    def take(self, size: int, before: int) -> None:
        """Hold ``size`` bytes more, for a request that holds ``before``.

        Raises:
            OverloadedError: there is no room for them; carries when to try again.
        """
        with self._lock:
            others = self._held - before
            if others and self._held + size > self.max_bytes:
                raise OverloadedError(
                    f"{self.name}: others hold {others} bytes, at most {self.max_bytes} may be "
                    f"held (VESSA_MAX_QUEUE_BYTES); try again in {RETRY_SECONDS:g} s",
                    field=self.name,
                    retry_after=RETRY_SECONDS,
                )
            self._held += size

    def give_back(self, size: int) -> None:
        """Hold ``size`` bytes less."""
        with self._lock:
            self._held -= size


class Share:
    """What one request holds of a room, until its context ends."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.size = 0

    def take(self, size: int) -> None:
        """Hold ``size`` bytes more; see :meth:`Room.take`."""
        self._room.take(size, self.size)
        self.size += size

    def __enter__(self) -> Share:
        return self

    def __exit__(self, *_: object) -> None:
        self._room.give_back(self.size)
        self.size = 0
