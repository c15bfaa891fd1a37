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

    @torch.no_grad()
    def update(self, student: nn.Module, step: int) -> None:
        """Average parameters and floating-point buffers; copy the others."""
        decay = min(1 - 1 / (step + 1), self.decay)
        current = student.state_dict()
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                value.mul_(decay).add_(current[name], alpha=1 - decay)
            else:
                value.copy_(current[name])
