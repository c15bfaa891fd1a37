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
        own, current = self.model.state_dict(), student.state_dict()
        averaged = [name for name, value in own.items() if value.is_floating_point()]
        # All at once: there are many small ones.
        means = [own.pop(name) for name in averaged]
        torch._foreach_mul_(means, decay)
        torch._foreach_add_(means, [current[name] for name in averaged], alpha=1 - decay)
        for name, value in own.items():
            value.copy_(current[name])
