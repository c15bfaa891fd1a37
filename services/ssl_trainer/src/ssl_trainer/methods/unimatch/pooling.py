"""Labels of teacher and VESSA for the same image become one.

Axes: B batch, C classes with background, H W space.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pooled(
    labels_BHW: Tensor, confidence_BHW: Tensor, teacher_BCHW: Tensor, share: float
) -> tuple[Tensor, Tensor]:
    """Labels of the mean of VESSA and teacher, and its confidence.

    VESSA gives its label and confidence; the rest of its probability is taken to be on the
    teacher's label, where that is another one: on ACDC as good as its real probabilities.

    Args:
        labels_BHW: VESSA's labels.
        confidence_BHW: of these, in [0, 1].
        teacher_BCHW: probabilities of the teacher.
        share: of the teacher, in [0, 1].
    """
    highest_BHW, other_BHW = teacher_BCHW.max(dim=1)
    agreed_BHW = teacher_BCHW.gather(1, labels_BHW[:, None])[:, 0]
    own_BHW = (1 - share) * confidence_BHW + share * agreed_BHW
    against_BHW = (1 - share) * (1 - confidence_BHW) + share * highest_BHW
    teacher_wins_BHW = (other_BHW != labels_BHW) & (against_BHW > own_BHW) if share else None
    if teacher_wins_BHW is None:
        return labels_BHW, own_BHW
    return (
        torch.where(teacher_wins_BHW, other_BHW, labels_BHW),
        torch.where(teacher_wins_BHW, against_BHW, own_BHW),
    )
