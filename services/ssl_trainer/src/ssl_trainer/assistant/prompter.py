"""Predicts the prompts for VESSA while the student trains.

Axes: B batch, C classes with background, H W space.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor, nn

from ssl_trainer.config import TrainConfig
from ssl_trainer.models import predict_probabilities
from vessa_common.precision import autocast

# Canvases, (1, H, W) each.
Canvases = Callable[[], Sequence[Tensor]]


class Prompter:
    """A copy of the teacher in a thread of its own."""

    def __init__(self, teacher: nn.Module, config: TrainConfig) -> None:
        self._teacher = teacher
        self._copy = copy.deepcopy(teacher).eval().requires_grad_(False)
        self._own = list(self._copy.state_dict().values())
        device = next(teacher.parameters()).device
        # Entered once and never left: leaving it would throw away the casts of weights that both
        # passes of the student share, in whichever thread they run.
        enter = autocast(device, config.precision).__enter__
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="prompter", initializer=enter)
        self._last: Future[Tensor] | None = None

    @torch.no_grad()
    def begin(self, canvases: Canvases) -> Future[Tensor]:
        """Begin to predict with the teacher as it is now; returns at once.

        Returns:
            Probabilities, 255 for 1, (B, C, H, W) uint8.
        """
        if self._last is not None:
            self._last.result()  # it still needs the copy
        torch._foreach_copy_(self._own, list(self._teacher.state_dict().values()))
        self._last = self._worker.submit(self._predict, canvases)
        return self._last

    def close(self) -> None:
        """Finish what was begun."""
        self._worker.shutdown(wait=True)

    def _predict(self, canvases: Canvases) -> Tensor:
        maps_BCHW = predict_probabilities(self._copy, torch.stack(list(canvases())))
        return (255 * maps_BCHW).round().to(torch.uint8)


def known(prompts: Tensor) -> Future[Tensor]:
    """Prompts that were predicted before."""
    future: Future[Tensor] = Future()
    future.set_result(prompts)
    return future
