"""What moves students, and how fast."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ssl_trainer.config import DptStudentConfig, TrainConfig

MOMENTUM = 0.9


def build_optimizer(students: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW as UniMatch V2, or SGD with momentum as UniMatch V1 on medical images."""
    groups, decay = layer_groups(students, config), config.weight_decay
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=decay, fused=True)
    return torch.optim.SGD(groups, momentum=MOMENTUM, weight_decay=decay, fused=True)


def layer_groups(students: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Parameters of one or several students by learning rate: DINOv2, then its decoder; or all.

    ``initial_lr`` is the rate from which the schedule starts.
    """
    if not isinstance(config.student, DptStudentConfig):
        return [_group(students.parameters(), config.rate)]
    backbone, head = list[nn.Parameter](), list[nn.Parameter]()
    for name, parameter in students.named_parameters():
        (backbone if "backbone" in name.split(".") else head).append(parameter)
    return [
        _group(backbone, config.rate),
        _group(head, config.rate * config.student.head_multiplier),
    ]


def scale_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's learning rate to ``factor`` of its first one."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["initial_lr"]


def _group(parameters: Iterable[nn.Parameter], rate: float) -> dict[str, Any]:
    return {"params": list(parameters), "lr": rate, "initial_lr": rate}
