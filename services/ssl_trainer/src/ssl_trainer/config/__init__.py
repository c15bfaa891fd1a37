"""Typed configuration of a training run; read from YAML by :func:`load`.

An unknown key or a value of the wrong type is an error that names the key.
"""

from __future__ import annotations

from ssl_trainer.config.assistant import AssistantConfig
from ssl_trainer.config.augmentation import AugmentationConfig, RichAugmentationConfig
from ssl_trainer.config.checks import STRICT, ConfigError, check_window
from ssl_trainer.config.data import AXES, Axis, DataConfig, Layout
from ssl_trainer.config.methods import (
    BcpConfig,
    CpsConfig,
    MeanTeacherConfig,
    Method,
    UniMatchConfig,
    UnlabelledLoss,
)
from ssl_trainer.config.reading import load, parse, to_dict
from ssl_trainer.config.run import Optimizer, TrainConfig
from ssl_trainer.config.students import DptStudentConfig, StudentConfig, UNetConfig

__all__ = [
    "AXES",
    "STRICT",
    "AssistantConfig",
    "AugmentationConfig",
    "Axis",
    "BcpConfig",
    "ConfigError",
    "CpsConfig",
    "DataConfig",
    "DptStudentConfig",
    "Layout",
    "MeanTeacherConfig",
    "Method",
    "Optimizer",
    "RichAugmentationConfig",
    "StudentConfig",
    "TrainConfig",
    "UNetConfig",
    "UniMatchConfig",
    "UnlabelledLoss",
    "check_window",
    "load",
    "parse",
    "to_dict",
]
