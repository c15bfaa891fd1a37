"""Predicts the prompts for VESSA while the student trains.

Axes: B batch, C classes with background, H W space.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor, nn

from ssl_trainer.config import TrainConfig
from ssl_trainer.models import probabilities
from vessa_common.precision import autocast

# Canvases where the teacher is, (B, 1, H, W).
Canvases = Callable[[], Tensor]


class Prompter:
    """A copy of the teacher in a thread of its own."""

    def __init__(self, teacher: nn.Module, config: TrainConfig) -> None:
        self._copy = copy.deepcopy(teacher).eval().requires_grad_(False)
        self._own, self._teachers = (
            list(model.state_dict().values()) for model in (self._copy, teacher)
        )
        self._device = next(teacher.parameters()).device
        # Entered once and never left: leaving it would throw away the casts of weights that both
        # passes of the student share, in whichever thread they run.
        enter = autocast(self._device, config.precision).__enter__
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="prompter", initializer=enter)
        self._last: Future[Tensor] | None = None

    @torch.no_grad()
    def begin(self, canvases: Canvases) -> Future[Tensor]:
        """Begin to predict with the teacher as it is now; returns at once.

        Returns:
            Probabilities, 255 for 1, (B, C, H, W) uint8 on the CPU.
        """
        if self._last is not None:
            self._last.result()  # it still needs the copy
        torch._foreach_copy_(self._own, self._teachers)
        self._last = self._worker.submit(self._predict, canvases)
        return self._last

    def close(self) -> None:
        """Finish what was begun."""
        self._worker.shutdown(wait=True)

    def _predict(self, canvases: Canvases) -> Tensor:
        with torch.autocast(self._device.type, enabled=False):
            image_B1HW = canvases()  # what it sees is as exact as in training
        maps_BCHW = probabilities(self._copy, image_B1HW)
        return (255 * maps_BCHW).round().to(torch.uint8).cpu()


def known(prompts: Tensor) -> Future[Tensor]:
    """Prompts that were predicted before."""
    future: Future[Tensor] = Future()
    future.set_result(prompts)
    return future
