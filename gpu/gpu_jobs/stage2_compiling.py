"""Networks that are compiled while they train, where that turns out to be faster."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

# Updates before the first and between both measures, and of a measure.
WARM, MEASURED = 30, 60
# Of the eager milliseconds: compiled ones must be fewer than this.
WORTH = 0.95


class Compiling:
    """Measures updates, compiles networks in place, measures again, and takes the faster way.

    What cannot be compiled runs as it did.

    Attributes:
        found: milliseconds of an update, by the way it was made; seconds of compiling.
    """

    def __init__(self, networks: Sequence[nn.Module], backend: str = "inductor") -> None:
        self.networks = networks
        self.backend = backend
        self.found: dict[str, float] = {}
        self._times: list[float] = []

    def update(self) -> None:
        """To be called after each update."""
        self._times.append(time.perf_counter())
        count = len(self._times)
        if count == WARM + MEASURED:
            self.found["eager_ms"] = self._median()
            self._compile()
        elif count == 2 * (WARM + MEASURED):
            self.found["compiled_ms"] = self._median()
            warming = self._times[WARM + MEASURED - 1 : -MEASURED]
            self.found["compiling_seconds"] = round(warming[-1] - warming[0], 1)
            if self.found["compiled_ms"] > WORTH * self.found["eager_ms"]:
                self._undo()

    def _median(self) -> float:
        seconds = statistics.median(b - a for a, b in pairwise(self._times[-MEASURED:]))
        return round(1000 * seconds, 2)

    def _compile(self) -> None:
        import torch._dynamo

        torch._dynamo.config.suppress_errors = True
        for network in self.networks:
            network.compile(backend=self.backend)

    def _undo(self) -> None:
        for network in self.networks:
            network._compiled_call_impl = None
