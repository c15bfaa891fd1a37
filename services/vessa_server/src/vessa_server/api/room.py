"""Room in memory for what requests hold before and beside the queue."""

from __future__ import annotations

import threading

from vessa_client import OverloadedError, UnavailableError

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
        self.held = 0
        self.lock = threading.Lock()


class Share:
    """What one request holds of a room, until its context ends."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._ended = False
        self.size = 0

    def take(self, size: int) -> None:
        """Hold ``size`` bytes more.

        Raises:
            OverloadedError: there is no room for them beside others; carries when to try again.
            UnavailableError: the request has ended, though a thread still works for it.
        """
        room = self._room
        with room.lock:
            if self._ended:
                raise UnavailableError(f"{room.name}: the request has ended")
            others = room.held - self.size
            if others and room.held + size > room.max_bytes:
                raise OverloadedError(
                    f"{room.name}: others hold {others} bytes, at most {room.max_bytes} may be "
                    f"held (VESSA_MAX_QUEUE_BYTES); try again in {RETRY_SECONDS:g} s",
                    field=room.name,
                    retry_after=RETRY_SECONDS,
                )
            room.held += size
            self.size += size

    def __enter__(self) -> Share:
        return self

    def __exit__(self, *_: object) -> None:
        with self._room.lock:
            self._room.held -= self.size
            self.size = 0
            self._ended = True
