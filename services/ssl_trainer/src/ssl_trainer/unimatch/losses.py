"""Losses of Stage 2. Axes: B batch, C classes with background, H W space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor

_dice = DiceLoss(softmax=True, to_onehot_y=True, include_background=True)


def supervised_loss(logits_BCHW: Tensor, labels_BHW: Tensor) -> Tensor:
    """L_x: mean of cross-entropy and soft Dice."""
    cross_entropy = F.cross_entropy(logits_BCHW, labels_BHW)
    dice: Tensor = _dice(logits_BCHW, labels_BHW[:, None])
    return (cross_entropy + dice) / 2


def consistency_loss(
    logits_BCHW: Tensor, labels_BHW: Tensor, confidence_BHW: Tensor, threshold: float
) -> Tensor:
    """L_u: cross-entropy where the teacher is confident, averaged over all pixels."""
    per_pixel = F.cross_entropy(logits_BCHW, labels_BHW, reduction="none")
    return (per_pixel * (confidence_BHW >= threshold)).mean()


def assistant_loss(logits_BCHW: Tensor, labels_BHW: Tensor, weight_BHW: Tensor) -> Tensor:
    """L_v: cross-entropy with VESSA's labels, weighted by pixel, averaged over all pixels.

    ``weight_BHW`` is VESSA's confidence times the image's predicted IoU, 0 where there is no
    answer.
    """
    per_pixel = F.cross_entropy(logits_BCHW, labels_BHW, reduction="none")
    return (per_pixel * weight_BHW).mean()


def pixel_weight(confidence_BHW: Tensor) -> Tensor:
    """Confidence in [0, 1] to weight: 0 up to one half, 1 at full confidence."""
    return torch.clamp(2 * confidence_BHW - 1, min=0.0)
