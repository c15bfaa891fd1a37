"""What moves the student."""

from __future__ import annotations

import torch
from torch import nn

from ssl_trainer.config import TrainConfig

MOMENTUM = 0.9


def build_optimizer(student: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW as UniMatch V2, or SGD with momentum as UniMatch V1 on medical images."""
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adamw":
        return torch.optim.AdamW(student.parameters(), lr=rate, weight_decay=decay)
    return torch.optim.SGD(student.parameters(), lr=rate, momentum=MOMENTUM, weight_decay=decay)
