"""Validation by all processes: each predicts its share of the cases.

Axes: N cases with labels, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from ssl_trainer.data.cases import Case
from ssl_trainer.evaluation.evaluate import Predict, evaluate
from vessa_common.processes import Processes


def shared_dice(
    predict: Predict, cases: Sequence[Case], classes: Sequence[str], processes: Processes
) -> npt.NDArray[np.float64]:
    """Dice of each case with labels and each class, (N, C), the same in all processes."""
    known = [case for case in cases if case.labels is not None]
    if not known:
        return np.zeros((0, len(classes)))
    own = range(processes.rank, len(known), processes.world)
    scores = evaluate(predict, [known[index] for index in own], classes, distances=False)
    dice_NC = torch.zeros(len(known), len(classes), dtype=torch.float64)
    for index, found in zip(own, scores, strict=True):
        dice_NC[index] = torch.tensor(found.dice, dtype=torch.float64)
    processes.meet()
    # Each process has zeros where the others have scores.
    parts = processes.gather(dice_NC).view(processes.world, *dice_NC.shape)
    out: npt.NDArray[np.float64] = parts.sum(dim=0).numpy()
    return out
