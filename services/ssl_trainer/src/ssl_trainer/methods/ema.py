"""The teacher: an exponential moving average of the student."""

from __future__ import annotations

import copy

import torch
from torch import nn


class EmaTeacher:
    """Follows a student with decay min(1 - 1 / (step + 1), ``decay``), as UniMatch V2 does."""

    def __init__(self, student: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(student).eval().requires_grad_(False)

        # All at once, and found once: there are many small ones.
        pairs = zip(self.model.state_dict().values(), student.state_dict().values(), strict=True)
        both = list(pairs)
        self._averaged = [pair for pair in both if pair[0].is_floating_point()]
        self._counts = [pair for pair in both if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Average parameters and floating-point buffers; copy the others."""
        decay = min(1 - 1 / (step + 1), self.decay)
        means, current = zip(*self._averaged, strict=True)
        torch._foreach_lerp_(means, current, 1 - decay)
        if self._counts:
            counts, current = zip(*self._counts, strict=True)
            torch._foreach_copy_(counts, current)
