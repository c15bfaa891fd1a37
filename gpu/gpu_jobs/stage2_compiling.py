"""Networks that are compiled while they train, where that turns out to be faster."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
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
        self._count = 0
        self._begun = self._warming = 0.0

    def update(self) -> None:
        """To be called after each update."""
        self._count += 1
        way, within = divmod(self._count - 1, WARM + MEASURED)
        if way > 1:
            return
        if within + 1 == WARM:
            self._begun = _now()
            if way == 1:
                self.found["compiling_seconds"] = round(self._begun - self._warming, 1)
        elif within + 1 == WARM + MEASURED:
            self._warming = _now()
            milliseconds = round(1000 * (self._warming - self._begun) / MEASURED, 2)
            self.found[("eager_ms", "compiled_ms")[way]] = milliseconds
            if way == 0:
                self._compile()
            elif milliseconds > WORTH * self.found["eager_ms"]:
                self._undo()

    def _compile(self) -> None:
        import torch._dynamo

        torch._dynamo.config.suppress_errors = True
        for network in self.networks:
            # Batches of the same few sizes for the whole of the training.
            network.compile(backend=self.backend, dynamic=False)

    def _undo(self) -> None:
        for network in self.networks:
            network._compiled_call_impl = None


def _now() -> float:
    """When all that was begun is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
