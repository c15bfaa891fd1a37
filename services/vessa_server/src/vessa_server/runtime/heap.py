"""Gives free memory back to the system, so that a bound in bytes is one of resident memory, too.

Features that are kept, among a forward's short-lived tensors, leave holes in the C library's
heap: a process grows to twice what it holds. Where the library can, the holes are given back now
and then.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any


class HeapTrimmer:
    """Trims the heap once in ``every`` looks: some milliseconds in several seconds."""

    def __init__(self, every: int = 64) -> None:
        self.every = every
        self._looks = 0
        self._trim = _malloc_trim()

    def count(self, looks: int) -> None:
        """So many looks were run."""
        self._looks += looks
        if self._looks >= self.every and self._trim is not None:
            self._looks = 0
            self._trim(0)


def _malloc_trim() -> Callable[[int], Any] | None:
    """The C library's ``malloc_trim``; None where there is none, such as with musl."""
    try:
        found: Callable[[int], Any] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None
    return found
