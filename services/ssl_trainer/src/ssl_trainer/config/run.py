"""All of a run."""

from __future__ import annotations

import math
from dataclasses import field
from typing import Literal

from pydantic.dataclasses import dataclass

from ssl_trainer.config.assistant import AssistantConfig
from ssl_trainer.config.augmentation import AugmentationConfig, RichAugmentationConfig
from ssl_trainer.config.checks import STRICT, check_at_least, check_counts
from ssl_trainer.config.data import DataConfig
from ssl_trainer.config.methods import (
    BcpConfig,
    CpsConfig,
    MeanTeacherConfig,
    Method,
    UniMatchConfig,
)
from ssl_trainer.config.students import StudentConfig, UNetConfig
from vessa_common.precision import Precision

Optimizer = Literal["adamw", "sgd"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainConfig:
    """One run.

    ``method`` is how the student learns from unlabelled slices; VESSA helps ``unimatch``.
    ``augmentation`` is the weak one, of unlabelled slices and, where ``labelled_augmentation`` is
    null, of labelled ones too. ``sgd`` has a momentum of 0.9. An update sees ``accumulate``
    batches in each process. ``learning_rate`` is that of the U-Net, or of DINOv2, whose decoder has
    ``student.head_multiplier`` times as much; null is 1e-3 for the U-Net and, as in UniMatch V2,
    5e-6 for DINOv2. It falls as a polynomial.
    ``regions``: the student sees the part of each volume that shows the structures, upright. A
    small network finds it, which learns from the labelled volumes, and from what VESSA, where there
    is a server, says of the others. Without, it sees whole slices as they lie.
    ``precision`` of the networks while they train: ``fp32``, ``bf16``, or ``auto`` for bf16 where
    it is fast: on GPUs that have it, and on CPUs with AVX-512 BF16 or AMX.
    """

    data: DataConfig
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    labelled_augmentation: RichAugmentationConfig | None = field(
        default_factory=RichAugmentationConfig
    )
    student: StudentConfig = field(default_factory=UNetConfig)
    method: Method = "unimatch"
    unimatch: UniMatchConfig = field(default_factory=UniMatchConfig)
    mean_teacher: MeanTeacherConfig = field(default_factory=MeanTeacherConfig)
    cps: CpsConfig = field(default_factory=CpsConfig)
    bcp: BcpConfig = field(default_factory=BcpConfig)
    assistant: AssistantConfig = field(default_factory=AssistantConfig)
    regions: bool = True
    steps: int = 2500
    labelled_batch: int = 4
    unlabelled_batch: int = 4
    accumulate: int = 1
    precision: Precision = "auto"
    optimizer: Optimizer = "adamw"
    learning_rate: float | None = None
    weight_decay: float = 1e-2
    poly_power: float = 0.9
    validate_every: int = 250
    checkpoint_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self, "labelled_batch", "unlabelled_batch", "accumulate")
        check_counts(self, "steps", "validate_every", "checkpoint_every")
        check_at_least(self, 0, "weight_decay", "poly_power", "seed")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate: {self.learning_rate}, expected a number above 0")
        _check_size(self.data.size, self.student.side_unit, self.student.kind)
        if self.method != "unimatch" and self.assistant.server is not None:
            raise ValueError(
                f"assistant.server: {self.assistant.server}, but VESSA does not help with "
                f"{self.method}; expected null, or method: unimatch"
            )
        if self.method == "bcp" and self.labelled_batch != self.unlabelled_batch:
            raise ValueError(
                f"unlabelled_batch: {self.unlabelled_batch}, expected labelled_batch, "
                f"{self.labelled_batch}: bcp pastes either into the other"
            )

    @property
    def method_section(self) -> str:
        """Name of the section with the method's own keys."""
        return self.method.replace("-", "_")

    @property
    def learns_unlabelled(self) -> bool:
        """Whether unlabelled slices are used."""
        return bool(getattr(self, self.method_section).weight or self.assistant.server)

    @property
    def rate(self) -> float:
        """The learning rate of the U-Net, or of DINOv2, at first."""
        return self.student.default_rate if self.learning_rate is None else self.learning_rate


def _check_size(size: int, unit: int, kind: str) -> None:
    """Another size would be scaled or padded, out of sight."""
    if size % unit or size <= 0:
        below, above = max(unit, size // unit * unit), max(unit, -(-size // unit) * unit)
        nearest = f"{below} or {above}" if below < above else f"{above}"
        raise ValueError(
            f"data.size: {size}, expected a multiple of {unit} for {kind}; nearest: {nearest}"
        )
