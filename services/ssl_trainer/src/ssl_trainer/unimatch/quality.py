"""How good pseudo-labels are, where the truth is at hand. For curves only, never for training.

Axes: B batch, H W space.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_trainer.data.batches import UnlabelledBatch


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
    scores = {"quality/teacher": dice(teacher_BHW[known], truth_BHW)}
    if vessa_BHW is not None:
        scores["quality/vessa"] = dice(vessa_BHW[known], truth_BHW)
    return {name: score for name, score in scores.items() if score is not None}


def dice(predicted_BHW: Tensor, truth_BHW: Tensor) -> float | None:
    """Mean Dice of the structures of the truth, over the batch as a whole; None without any."""
    scores = []
    for value in truth_BHW.unique().tolist():
        if value:
            p, t = predicted_BHW == value, truth_BHW == value
            scores.append(2 * int((p & t).sum()) / int(p.sum() + t.sum()))
    return sum(scores) / len(scores) if scores else None
