"""Students."""

from __future__ import annotations

import torch

from ssl_trainer.config import StudentConfig, UNetConfig
from ssl_trainer.models.student import Student, predict_probabilities, probabilities
from ssl_trainer.models.unet import UNetStudent


def build(config: StudentConfig, num_classes: int) -> Student:
    """The student that ``config`` describes, with random weights except for a pretrained part.

    Raises:
        ConfigError: its pretrained weights cannot be used.
    """
    if isinstance(config, UNetConfig):
        # Channels last makes convolutions much faster, on CPUs too.
        return UNetStudent(config, num_classes).to(memory_format=torch.channels_last)
    # transformers takes seconds to import, which a U-Net need not wait for.
    from ssl_trainer.models.dpt import DptStudent

    return DptStudent(config, num_classes)


__all__ = ["Student", "build", "predict_probabilities", "probabilities"]
