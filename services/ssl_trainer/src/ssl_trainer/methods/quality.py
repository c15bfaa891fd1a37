"""How good pseudo-labels are, where the truth is at hand. For curves only, never for training.

Axes: B batch, H W space.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ssl_trainer.data.batches import UnlabelledBatch
from ssl_trainer.evaluation.metrics import foreground_dice


def watch(
    batch: UnlabelledBatch,
    teacher_BHW: Tensor,
    vessa_BHW: Tensor | None,
    answered: Sequence[bool],
) -> dict[str, float]:
    """Dice of the labels of teacher and VESSA in the views of a batch, where truth is known.

    ``answered`` says of which slices VESSA gave labels; only those count for it.
    """
    known = [row for row, item in enumerate(batch.slices) if item.labels is not None]
    if not known:
        return {}
    nothing = np.zeros((1, 1), np.uint8)
    truth = [nothing if item.labels is None else item.labels for item in batch.slices]
    truth_BHW = batch.warp([torch.from_numpy(one)[None] for one in truth], mode="nearest")[:, 0]
    truth_BHW = truth_BHW.cpu().long()
    scores = {"quality/teacher": foreground_dice(teacher_BHW.cpu()[known], truth_BHW[known])}
    rows = [row for row in known if answered and answered[row]]
    if vessa_BHW is not None and rows:
        scores["quality/vessa"] = foreground_dice(vessa_BHW.cpu()[rows], truth_BHW[rows])
    return {name: score for name, score in scores.items() if score is not None}
