"""An answer, and how good its masks probably are, estimated from their own probabilities.

Arrays come and go as numpy's; softmax and sums are torch's, which are several times as fast.
Axes: C classes, H W space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Answer:
    """Probabilities of background and classes, (1 + C, H, W), and estimated IoU, (C,).

    The estimate is of VESSA's own masks, also where a student's structure is kept.
    """

    probability_CHW: Floats
    iou_C: Floats

    @staticmethod
    def of(logits_CHW: Floats) -> Answer:
        """From the logits of the classes."""
        probability_CHW = with_background(logits_CHW)
        return Answer(probability_CHW, expected_iou(probability_CHW))

    @property
    def quality(self) -> float:
        """Mean estimated IoU of the classes."""
        return float(torch.from_numpy(self.iou_C).mean())

    def reported_iou(self) -> list[float]:
        """Estimated IoU of each class, half of it the mean of all.

        Structures in one image are segmented in the right place together, or all in a wrong one.
        """
        iou_C = torch.from_numpy(self.iou_C)
        reported: list[float] = ((iou_C + iou_C.mean()) / 2).tolist()
        return reported

    def foreground(self) -> Bools:
        """Where a class wins, (H, W)."""
        return winner(self.probability_CHW)[0] > 0


def with_background(logits_CHW: Floats) -> Floats:
    """Probabilities of background, whose logit is 0, and the classes."""
    logits = torch.from_numpy(logits_CHW)
    probability: Floats = torch.softmax(
        torch.cat([torch.zeros_like(logits[:1]), logits]), 0
    ).numpy()
    return probability


@dataclass(frozen=True)
class Decision:
    """Which of background and classes each pixel is, by logits that are not kept.

    Attributes:
        labels_HW: 0 for background.
        best_HW: the largest logit, and ...
        total_HW: ... the sum of the exponentials of all, relative to it.
    """

    labels_HW: npt.NDArray[np.uint8]
    best_HW: torch.Tensor
    total_HW: torch.Tensor

    @property
    def confidence(self) -> Floats:
        """Probability of the label, (H, W)."""
        confidence: Floats = self.total_HW.reciprocal().numpy()
        return confidence

    def probability(self, logit_HW: Floats) -> Floats:
        """Probability of a class by its logits."""
        share: Floats = (
            (torch.from_numpy(logit_HW) - self.best_HW).exp_().div_(self.total_HW).numpy()
        )
        return share


def decide(maps: Callable[[], Iterable[Floats]]) -> Decision:
    """What :func:`with_background` and :func:`winner` give, with one map in memory at a time.

    Args:
        maps: gives the logits of each class, (H, W); called twice.
    """
    best, labels = torch.zeros(()), torch.zeros((), dtype=torch.uint8)
    for index, logit_HW in enumerate(maps(), start=1):
        logit = torch.from_numpy(logit_HW)
        labels = torch.where(logit > best, index, labels)
        best = torch.maximum(best, logit)
    total = best.neg().exp_()
    for logit_HW in maps():
        total += (torch.from_numpy(logit_HW) - best).exp_()
    return Decision(labels.numpy(), best, total)


def winner(probability_CHW: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    """Index of the most probable of background and classes, and its probability, (H, W) each."""
    best = torch.from_numpy(probability_CHW).max(dim=0)  # numpy's argmax takes 20 times as long
    return best.indices.numpy(), best.values.numpy()


def expected_iou(probability_CHW: Floats) -> Floats:
    """Estimated IoU of each class's mask with the truth, (C,); 0 where nothing was segmented.

    Of independent pixels, the expected intersection over the expected union would be it. But
    neighbours are wrong together, and the decoder is surer than it should be: the square is
    close to what is seen (``benchmarks/student_masks.py``, calibration).

    Args:
        probability_CHW: of background, then the classes; they add up to one.
    """
    probability = torch.from_numpy(probability_CHW)
    winner_HW = probability.max(dim=0).indices
    classes_CHW = probability[1:]
    mask_CHW = winner_HW == torch.arange(1, len(probability))[:, None, None]
    inside_C = torch.where(mask_CHW, classes_CHW, 0).sum(dim=(1, 2))
    union_C = mask_CHW.sum(dim=(1, 2)) + classes_CHW.sum(dim=(1, 2)) - inside_C
    iou_C: Floats = ((inside_C / union_C.clamp(min=1.0)) ** 2).numpy()
    return iou_C
