"""Templates tell in how many pieces structures come, the volume where: others are doubtful.

Axes: C classes, H W space.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from vessa_server.model import preprocess

# Logit of what is left out: background, but not surely so.
DOUBTED_LOGIT = -2.0
# Mean probability from which a student sees a piece, and what VESSA's own counts beside it.
SEEN, OWN_WEIGHT = 0.2, 0.01
# Share of a piece in the core of its structure from which it is part of it.
INSIDE = 0.05


@dataclass(frozen=True)
class Pieces:
    """The most pieces that the templates show: of each class, and of all classes together."""

    of_class: tuple[int, ...]
    together: int

    @staticmethod
    def count(masks_CHW: npt.NDArray[np.bool_]) -> Pieces:
        """The pieces of one template's structures."""
        together: npt.NDArray[np.bool_] = np.any(masks_CHW, axis=0)
        of_class = tuple(preprocess.parts(mask).count for mask in masks_CHW)
        return Pieces(of_class, preprocess.parts(together).count)

    def doubt(
        self,
        logits_CHW: Tensor,
        core_CHW: Tensor | None = None,
        student_CHW: Tensor | None = None,
    ) -> Tensor:
        """Lower the logits of the pieces beyond as many as the templates show.

        The heaviest pieces stay, by summed probability. A structure that no template shows is
        left as it is.

        Args:
            logits_CHW: of the classes.
            core_CHW: where most slices of the volume show each class: pieces beside it are
                doubted, too.
            student_CHW: a student's probabilities: what it sees stays, and weighs more.
        """
        logits = logits_CHW.clone()
        probability = logits.sigmoid()
        winner_HW = _labels(logits)
        for index, most in enumerate(self.of_class):
            core = None if core_CHW is None else core_CHW[index]
            student = None if student_CHW is None else student_CHW[index]
            extra = _doubtful(winner_HW == index + 1, probability[index], most, core, student)
            logits[index, extra] = logits[index, extra].clamp(max=DOUBTED_LOGIT)
        if student_CHW is None:
            shown = _labels(logits) > 0
            extra = _doubtful(shown, probability.amax(dim=0), self.together)
            logits[:, extra] = logits[:, extra].clamp(max=DOUBTED_LOGIT)
        return logits


def most(counts: list[Pieces]) -> Pieces:
    """What any of several templates shows."""
    of_class = tuple(max(values) for values in zip(*(c.of_class for c in counts), strict=True))
    return Pieces(of_class, max(c.together for c in counts))


def any_number(classes: int) -> Pieces:
    """Of which nothing is doubted."""
    return Pieces((0,) * classes, 0)


def _labels(logits_CHW: Tensor) -> Tensor:
    """The strongest class of each pixel, from 1; 0 where none is above 0."""
    strongest = logits_CHW.max(dim=0)
    return torch.where(strongest.values > 0, strongest.indices + 1, 0)


def _doubtful(
    mask_HW: Tensor,
    weight_HW: Tensor,
    most: int,
    core_HW: Tensor | None = None,
    student_HW: Tensor | None = None,
) -> Tensor:
    """Pixels of the doubtful pieces of ``mask_HW``; none where ``most`` is 0."""
    labelled, count = ndimage.label(mask_HW.numpy())
    if most == 0 or (core_HW is None and count <= most):
        return torch.zeros_like(mask_HW)

    def summed(values_HW: Tensor) -> npt.NDArray[np.float64]:
        sums = ndimage.sum_labels(values_HW.double().numpy(), labelled, range(1, count + 1))
        return np.asarray(sums, dtype=np.float64)

    size, weight = summed(mask_HW), summed(weight_HW)
    unseen = np.ones(count, dtype=bool)
    if student_HW is not None:
        seen = summed(student_HW)
        unseen, weight = seen < SEEN * size, seen + OWN_WEIGHT * weight
    doubtful = np.zeros(count, dtype=bool)
    if core_HW is not None:
        doubtful = unseen & (summed(core_HW) < INSIDE * size)
    beyond = np.argsort(np.where(doubtful, np.inf, -weight), kind="stable")[most:]
    doubtful[beyond] |= unseen[beyond]
    return torch.from_numpy(np.isin(labelled, 1 + np.flatnonzero(doubtful)))
