"""An answer, and how good its masks probably are, judged by their own probabilities.

Axes: C classes, H W space.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Answer:
    """Probabilities of background and classes, (1 + C, H, W), and estimated IoU, (C,).

    The estimate is of VESSA's own masks, also where a student's structure is kept.
    """

    probability_CHW: Tensor
    iou_C: Tensor

    @staticmethod
    def of(logits_CHW: Tensor) -> Answer:
        """From the logits of the classes."""
        probability_CHW = with_background(logits_CHW)
        return Answer(probability_CHW, expected_iou(probability_CHW))

    def told_iou(self) -> list[float]:
        """Estimated IoU as it is told, of each class: half of it is the mean of all.

        Structures in one image are found in the right place together, or all in a wrong one.
        """
        return ((self.iou_C + self.iou_C.mean()) / 2).tolist()

    def found(self) -> Tensor:
        """Where a class wins, (H, W)."""
        return self.probability_CHW.max(dim=0).indices > 0


def with_background(logits_CHW: Tensor) -> Tensor:
    """Probabilities of background, whose logit is 0, and the classes."""
    return torch.softmax(torch.cat([torch.zeros_like(logits_CHW[:1]), logits_CHW]), dim=0)


def expected_iou(probability_CHW: Tensor) -> Tensor:
    """Estimated IoU of each class's mask with the truth, (C,); 0 where nothing was found.

    Of independent pixels, the expected intersection over the expected union would be it. But
    neighbours are wrong together, and the decoder is surer than it should be: the square is
    close to what is seen (``benchmarks/student_masks.py``, calibration).

    Args:
        probability_CHW: of background, then the classes; they add up to one.
    """
    winner_HW = probability_CHW.max(dim=0).indices  # argmax takes 20 times as long
    classes_CHW = probability_CHW[1:]
    mask_CHW = winner_HW == torch.arange(1, len(probability_CHW))[:, None, None]
    inside_C = torch.where(mask_CHW, classes_CHW, 0).sum(dim=(1, 2))
    union_C = mask_CHW.sum(dim=(1, 2)) + classes_CHW.sum(dim=(1, 2)) - inside_C
    return (inside_C / union_C.clamp(min=1.0)) ** 2
