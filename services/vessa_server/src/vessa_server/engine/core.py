"""What a slice shows far from where its volume has the structure is doubtful.

Axes: C classes, H W space.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

# Logit of what is left out: background, but not surely so.
DOUBTED_LOGIT = -2.0
# Mean probability from which a student sees a component.
SEEN = 0.2
# Share of a component in the core of its structure from which it is part of it.
INSIDE = 0.05


def doubt_outside(
    logits_CHW: Tensor, core_CHW: Tensor | None, student_CHW: Tensor | None = None
) -> Tensor:
    """Lower the logits of connected components outside of the core of their class.

    Args:
        logits_CHW: of the classes.
        core_CHW: where most slices of the volume show each class; None doubts nothing.
        student_CHW: a student's probabilities: what it sees stays.
    """
    if core_CHW is None:
        return logits_CHW
    logits = logits_CHW.clone()
    strongest = logits.max(dim=0)
    for index in range(len(logits)):
        shown_HW = (strongest.values > 0) & (strongest.indices == index)
        student_HW = None if student_CHW is None else student_CHW[index]
        outside_HW = _outside(shown_HW, core_CHW[index], student_HW)
        logits[index, outside_HW] = logits[index, outside_HW].clamp(max=DOUBTED_LOGIT)
    return logits


def _outside(shown_HW: Tensor, core_HW: Tensor, student_HW: Tensor | None) -> Tensor:
    labelled, count = ndimage.label(shown_HW.numpy())
    if count == 0:
        return torch.zeros_like(shown_HW)

    def mean(values_HW: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        means = ndimage.mean(values_HW.double().numpy(), labelled, range(1, count + 1))
        return np.asarray(means, dtype=np.float64)

    outside = mean(core_HW) < INSIDE
    if student_HW is not None:
        outside &= mean(student_HW) < SEEN
    return torch.from_numpy(np.isin(labelled, 1 + np.flatnonzero(outside)))
