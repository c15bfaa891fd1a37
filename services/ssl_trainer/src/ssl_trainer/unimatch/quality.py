"""How good pseudo-labels are, where the truth is at hand. For curves only, never for training.

Axes: B batch, H W space.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    known = {
        i: batch.warp(i, torch.tensor(item.labels).float()[None], mode="nearest")[0].long()
        for i, item in enumerate(batch.slices)
        if item.labels is not None
    }
    scores = {"quality/teacher": _dice(teacher_BHW, known, list(known))}
    if vessa_BHW is not None:
        scores["quality/vessa"] = _dice(vessa_BHW, known, [i for i in known if answered[i]])
    return {name: score for name, score in scores.items() if score is not None}


def _dice(labels_BHW: Tensor, truth: dict[int, Tensor], rows: list[int]) -> float | None:
    if not rows:
        return None
    return foreground_dice(labels_BHW[rows], torch.stack([truth[row] for row in rows]))
