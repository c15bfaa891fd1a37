"""What a method is: how students learn from a labelled batch and weak views of an unlabelled one.

Axes: B batch, C classes with background, H W space.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from ssl_trainer import models
from ssl_trainer.assistant.assistant import PseudoLabel
from ssl_trainer.config import TrainConfig
from ssl_trainer.data.batches import LabelledBatch, UnlabelledBatch
from ssl_trainer.methods import quality
from ssl_trainer.methods.ema import EmaTeacher
from ssl_trainer.methods.losses import Scalars
from ssl_trainer.models import Student, probabilities
from vessa_common.precision import autocast
from vessa_common.processes import Processes

# Of the teacher, in Mean Teacher as in BCP (SSL4MIS and the authors' code, both for ACDC).
EMA_DECAY = 0.99


class Batch(NamedTuple):
    """What one backward pass learns from.

    Attributes:
        labelled: strongly varied slices.
        unlabelled: weak views; None where nothing unlabelled is used.
        answers: VESSA's, of the unlabelled slices; empty without.
        step: of the update, from 0.
        rng: of this batch.
        logged: whether scalars are kept.
    """

    labelled: LabelledBatch
    unlabelled: UnlabelledBatch | None
    answers: list[PseudoLabel | None]
    step: int
    rng: np.random.Generator
    logged: bool


class Method(ABC):
    """Students, their teacher, and the loss of a batch.

    Attributes:
        students: all that the optimiser moves; their own initialisation each.
        teacher: moving average of the first student. It is what is validated, kept, and predicts.
        passes: the module whose backward passes make the gradients.
    """

    count = 1
    passes: nn.Module

    def __init__(
        self, config: TrainConfig, processes: Processes, ema_decay: float = EMA_DECAY
    ) -> None:
        self.config = config
        classes = len(config.data.classes)
        built = [
            models.build(config.student, classes).to(processes.device) for _ in range(self.count)
        ]
        self.students = nn.ModuleList(built)
        self.passes = self.students
        self.student: Student = built[0]
        self.teacher = EmaTeacher(self.student, ema_decay)

    def networks(self) -> dict[str, nn.Module]:
        """All that a state holds, by name."""
        others = {f"student_{i}": s for i, s in enumerate(self.students, 1) if i > 1}
        return {"student": self.student, "teacher": self.teacher.model, **others}

    @abstractmethod
    def loss(self, batch: Batch) -> tuple[Tensor, Scalars]:
        """The loss of a batch, whose gradient is wanted, and what to log of it."""

    def logits(self, student: nn.Module, *images_B1HW: Tensor) -> list[Tensor]:
        """Of several batches, each in a pass of its own.

        In one pass batch normalisation makes what is strongly varied stand out beside what is not:
        students that fit labelled slices took all of an unlabelled one for foreground.
        """
        with autocast(images_B1HW[0].device, self.config.precision):
            return [student(images).float() for images in images_B1HW]

    def taught(self, image_B1HW: Tensor) -> Tensor:
        """The teacher's probabilities, (B, C, H, W)."""
        with autocast(image_B1HW.device, self.config.precision):
            return probabilities(self.teacher.model, image_B1HW)

    def watched(self, batch: Batch, labels_BHW: Tensor) -> dict[str, float]:
        """How good pseudo-labels are, where that is logged and the truth is at hand."""
        if batch.unlabelled is None or not (batch.logged and self.config.data.watch_quality):
            return {}
        return quality.watch(batch.unlabelled, labels_BHW, None, [])
