"""Students."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ssl_trainer.config import ConfigError, StudentConfig, UNetConfig
from ssl_trainer.models.student import Student, predict_probabilities, probabilities
from ssl_trainer.models.unet import UNetStudent

# What a published config.json says of its file, and not of the network.
OF_A_FILE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


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


def shaped(config: StudentConfig) -> StudentConfig:
    """With the shape of a pretrained part, which is all that :func:`to_fill` needs of it.

    Raises:
        ConfigError: its folder has none.
    """
    if isinstance(config, UNetConfig) or config.pretrained is None:
        return config
    return replace(config, backbone=_published_shape(config.pretrained))


def to_fill(config: StudentConfig, num_classes: int) -> Student:
    """The same as :func:`build` for weights that are at hand: a pretrained part need not be there.

    Raises:
        ConfigError: the shape of the pretrained part was not kept, and its folder is gone.
    """
    if isinstance(config, UNetConfig) or config.pretrained is None:
        return build(config, num_classes)
    shape = config.backbone or _published_shape(config.pretrained)
    return build(replace(config, pretrained=None, backbone=shape), num_classes)


def _published_shape(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"student.pretrained: {folder} holds no DINOv2: {error}") from error
    return {key: value for key, value in content.items() if key not in OF_A_FILE}


__all__ = ["Student", "build", "predict_probabilities", "probabilities", "shaped", "to_fill"]
