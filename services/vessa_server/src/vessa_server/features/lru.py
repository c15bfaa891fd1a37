"""A memory bounded by bytes, least recently used removed first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class ByteLru(Generic[V]):
    """Values with a size each. Thread-safe.

    What is removed is released without the lock: its end may take time, or ask for other values.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes {max_bytes}: expected 0 or more")
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, tuple[V, int]] = OrderedDict()
        self._bytes = 0

    @property
    def bytes(self) -> int:
        """Bytes held now."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable) -> V | None:
        """The value, which becomes the most recently used; or None."""
        with self._lock:
            entry = self._values.get(key)
            if entry is None:
                return None
            self._values.move_to_end(key)
            return entry[0]

    def put(self, key: Hashable, value: V, size: int) -> None:
        """Keep ``value``; one that is larger than the whole memory is not kept."""
        removed: list[tuple[V, int]] = []
        with self._lock:
            if key in self._values:
                removed.append(self._values.pop(key))
                self._bytes -= removed[-1][1]
            if size > self.max_bytes:
                return
            self._values[key] = (value, size)
            self._bytes += size
            while self._bytes > self.max_bytes:
                removed.append(self._values.popitem(last=False)[1])
                self._bytes -= removed[-1][1]

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            removed, self._values = self._values, OrderedDict()
            self._bytes = 0
        removed.clear()
