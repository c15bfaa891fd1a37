"""Times of the stages of one request."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


class StageClock:
    """Adds up the time spent in each stage; a stage that was not entered is not listed."""

    def __init__(self, between: Callable[[], object] = bool) -> None:
        """``between`` is called after each stage: what is more urgent may run there."""
        self._between = between
        self._seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as ``name``."""
        start = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - start)
        self._between()

    def add(self, name: str, seconds: float) -> None:
        """Add to a stage."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def share(self, clocks: Iterable[StageClock]) -> None:
        """Give each of several requests, which were computed together, an equal part."""
        sharing = list(clocks)
        for name, seconds in self._seconds.items():
            for clock in sharing:
                clock.add(name, seconds / len(sharing))

    def milliseconds(self) -> dict[str, float]:
        """Stage names and milliseconds, in the order in which they were first entered."""
        return {name: 1000 * seconds for name, seconds in self._seconds.items()}
