"""Times of the stages of one request."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class StageClock:
    """Adds up the time spent in each stage; a stage that was not entered is not listed."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as ``name``."""
        with self.shared([self], name):
            yield

    @staticmethod
    @contextmanager
    def shared(clocks: list[StageClock], name: str) -> Iterator[None]:
        """Time a block that serves several requests; each is given an equal part."""
        start = time.perf_counter()
        yield
        part = (time.perf_counter() - start) / len(clocks)
        for clock in clocks:
            clock._seconds[name] = clock._seconds.get(name, 0.0) + part

    def milliseconds(self) -> dict[str, float]:
        """Stage names and milliseconds, in the order in which they were first entered."""
        return {name: 1000 * seconds for name, seconds in self._seconds.items()}
