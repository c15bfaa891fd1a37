"""How good pseudo-labels are, where the truth is at hand. For curves only, never for training.

Axes: B batch, H W space.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_trainer.data.batches import UnlabelledBatch
from ssl_trainer.evaluation.metrics import foreground_dice


def watch(
    batch: UnlabelledBatch, teacher_BHW: Tensor, vessa_BHW: Tensor | None
) -> dict[str, float]:
    """Dice of the labels of teacher and VESSA in the views of a batch, where truth is known."""
    known = [i for i, item in enumerate(batch.slices) if item.labels is not None]
    if not known:
        return {}
    truth_BHW = torch.stack(
        [
            batch.warp(i, torch.tensor(batch.slices[i].labels).float()[None], mode="nearest")[0]
            for i in known
        ]
    ).long()
    scores = {"quality/teacher": foreground_dice(teacher_BHW[known], truth_BHW)}
    if vessa_BHW is not None:
        scores["quality/vessa"] = foreground_dice(vessa_BHW[known], truth_BHW)
    return {name: score for name, score in scores.items() if score is not None}
