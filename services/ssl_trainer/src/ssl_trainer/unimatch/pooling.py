"""Labels of teacher and VESSA for the same image: whose count, and how they become one.

Axes: B batch, C classes with background, H W space.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_trainer.config import AssistantConfig

# Agreement (Dice of the structures) from which teacher and VESSA see the same, and below which
# they do not; VESSA's IoU up to which it is unsure of the image, and from which it is sure.
# On ACDC VESSA's labels of an image are the better ones where they agree by less than 0.55 and it
# expects an IoU of at least 0.575 (benchmarks/ssl_conflicts.py).
AGREEMENT_RANGE, SURE_RANGE = (0.4, 0.7), (0.5, 0.65)


def doubt(teacher_BHW: Tensor, vessa_BHW: Tensor, iou_B: Tensor, num_classes: int) -> Tensor:
    """How far the teacher's labels of each image are doubted, in [0, 1], (B,).

    A teacher is sure of its mistakes, too: where a patient lies unlike the annotated ones, it
    confirms them. It is doubted more the less of its structures VESSA sees, as far as VESSA is
    sure of the image.

    Args:
        teacher_BHW: labels of the teacher.
        vessa_BHW: labels of VESSA.
        iou_B: that VESSA expects of its own.
        num_classes: without background.
    """
    low, high = AGREEMENT_RANGE
    other_B = ((high - agreement(teacher_BHW, vessa_BHW, num_classes)) / (high - low)).clamp(0, 1)
    low, high = SURE_RANGE
    return other_B * ((iou_B - low) / (high - low)).clamp(0, 1)


def believed(
    teacher_BHW: Tensor,
    vessa_BHW: Tensor,
    iou_B: Tensor,
    num_classes: int,
    config: AssistantConfig,
    assistant_weight: float = 1.0,
) -> Tensor:
    """How much the teacher counts in each image, (B,): all of it, less what VESSA overrules.

    That is as much of :func:`doubt` as VESSA's labels count.
    """
    if not config.overrule:
        return torch.ones(len(iou_B))
    return 1 - min(assistant_weight, 1.0) * doubt(teacher_BHW, vessa_BHW, iou_B, num_classes)


def agreement(one_BHW: Tensor, other_BHW: Tensor, num_classes: int) -> Tensor:
    """Mean Dice of the structures that either shows, (B,); 1 where neither shows any."""
    count, labels = len(one_BHW), num_classes + 1
    image_B11 = torch.arange(count, device=one_BHW.device)[:, None, None]
    pairs_BHW = (image_B11 * labels + one_BHW) * labels + other_BHW
    pairs = torch.bincount(pairs_BHW.flatten(), minlength=count * labels**2)
    pairs_BLL = pairs.view(count, labels, labels)
    total_BC = (pairs_BLL.sum(dim=1) + pairs_BLL.sum(dim=2))[:, 1:]
    dice_BC = 2 * pairs_BLL.diagonal(dim1=1, dim2=2)[:, 1:] / total_BC.clamp(min=1)
    shown_B = (total_BC > 0).sum(dim=1)
    return torch.where(shown_B > 0, dice_BC.sum(dim=1) / shown_B.clamp(min=1), 1.0)


def pooled(
    labels_BHW: Tensor,
    confidence_BHW: Tensor,
    teacher_BCHW: Tensor,
    share_B: Tensor,
) -> tuple[Tensor, Tensor]:
    """Labels of the mean of VESSA and teacher, and how sure that is.

    VESSA tells its label and how sure it is; the rest of its probability is taken to be on the
    teacher's label, where that is another one: on ACDC as good as its real probabilities.
    ``share_B`` is the teacher's.
    """
    share_B11 = share_B[:, None, None]
    sure_BHW, other_BHW = teacher_BCHW.max(dim=1)
    agreed_BHW = teacher_BCHW.gather(1, labels_BHW[:, None])[:, 0]
    own_BHW = (1 - share_B11) * confidence_BHW + share_B11 * agreed_BHW
    against_BHW = (1 - share_B11) * (1 - confidence_BHW) + share_B11 * sure_BHW
    overruled_BHW = (share_B11 > 0) & (other_BHW != labels_BHW) & (against_BHW > own_BHW)
    return (
        torch.where(overruled_BHW, other_BHW, labels_BHW),
        torch.where(overruled_BHW, against_BHW, own_BHW),
    )
