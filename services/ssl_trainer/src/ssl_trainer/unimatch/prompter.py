"""Predicts what VESSA is told, while the student trains.

Axes: B batch, C classes with background, H W space.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor, nn

from ssl_trainer.config import TrainConfig
from ssl_trainer.models import predict_probabilities
from vessa_common.precision import autocast

# The canvases of some rows of a batch, (1, H, W).
Canvases = Callable[[], dict[int, Tensor]]


class Prompter:
    """A copy of a model in a thread of its own."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.config = config
        self._copy = copy.deepcopy(model).eval().requires_grad_(False)
        self._own = list(self._copy.state_dict().values())
        device = next(model.parameters()).device
        # Entered once and never left: leaving it would throw away the casts of weights that both
        # passes of the student share, in whichever thread they run.
        enter = autocast(device, config.precision).__enter__
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="prompter", initializer=enter)
        self._last: Future[Tensor] | None = None

    @torch.no_grad()
    def begin(self, model: nn.Module, canvases: Canvases, count: int) -> Future[Tensor]:
        """Begin to predict with ``model`` as it is now; returns at once.

        Returns:
            Probabilities, 255 for 1, (count, C, H, W); 0 in rows without a canvas.
        """
        if self._last is not None:
            self._last.result()  # it still needs the copy
        torch._foreach_copy_(self._own, list(model.state_dict().values()))
        self._last = self._worker.submit(self._predict, canvases, count)
        return self._last

    def close(self) -> None:
        """Finish what was begun."""
        self._worker.shutdown(wait=True)

    def _predict(self, canvases: Canvases, count: int) -> Tensor:
        size, shown = self.config.data.size, canvases()
        told = torch.zeros(count, 1 + len(self.config.data.classes), size, size, dtype=torch.uint8)
        if shown:
            maps = predict_probabilities(self._copy, torch.stack(list(shown.values())))
            told[list(shown)] = (255 * maps).round().to(torch.uint8)
        return told


def known(told: Tensor) -> Future[Tensor]:
    """What was predicted before."""
    future: Future[Tensor] = Future()
    future.set_result(told)
    return future
