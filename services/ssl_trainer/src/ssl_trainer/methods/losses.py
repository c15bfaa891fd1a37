"""Losses of Stage 2. Axes: B batch, C classes with background, H W space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor

# What is logged of a batch; tensors are read where it is, since a GPU would be waited for.
Scalars = dict[str, Tensor | float]
DICE_SMOOTH = 1e-5
_dice = DiceLoss(softmax=True, to_onehot_y=True, include_background=True)


def supervised_loss(logits_BCHW: Tensor, labels_BHW: Tensor) -> Tensor:
    """L_x: mean of cross-entropy and soft Dice."""
    cross_entropy = F.cross_entropy(logits_BCHW, labels_BHW)
    dice: Tensor = _dice(logits_BCHW, labels_BHW[:, None])
    return (cross_entropy + dice) / 2


def weighted_cross_entropy(
    log_probability_BCHW: Tensor, labels_BHW: Tensor, weight_BHW: Tensor
) -> Tensor:
    """Cross-entropy weighted by pixel, averaged over all pixels."""
    per_pixel = F.nll_loss(log_probability_BCHW, labels_BHW, reduction="none")
    return (per_pixel * weight_BHW).mean()


def weighted_dice(log_probability_BCHW: Tensor, labels_BHW: Tensor, weight_BHW: Tensor) -> Tensor:
    """Soft Dice loss over the batch, its sums weighted by pixel, averaged over the classes.

    With weights of 0 and 1 it is what UniMatch's authors use on unlabelled medical images. A
    small structure counts as much as the background.
    """
    probability_BCHW = log_probability_BCHW.exp()
    classes_C11 = torch.arange(probability_BCHW.shape[1], device=labels_BHW.device)[:, None, None]
    weight_B1HW = weight_BHW[:, None]
    target_BCHW = weight_B1HW * (labels_BHW[:, None] == classes_C11)
    overlap_C = (probability_BCHW * target_BCHW).sum(dim=(0, 2, 3))
    found_C = (weight_B1HW * probability_BCHW**2).sum(dim=(0, 2, 3))
    total_C = found_C + target_BCHW.sum(dim=(0, 2, 3))
    return (1 - (2 * overlap_C + DICE_SMOOTH) / (total_C + DICE_SMOOTH)).mean()


def weighted_both(log_probability_BCHW: Tensor, labels_BHW: Tensor, weight_BHW: Tensor) -> Tensor:
    """Mean of both, as in L_x."""
    target = labels_BHW, weight_BHW
    dice = weighted_dice(log_probability_BCHW, *target)
    return (weighted_cross_entropy(log_probability_BCHW, *target) + dice) / 2


# L_u and L_v: log-softmax of a strong view, labels, and a weight for each pixel.
UNLABELLED = {
    "cross_entropy": weighted_cross_entropy,
    "dice": weighted_dice,
    "both": weighted_both,
}


def confident(confidence_BHW: Tensor, threshold: float) -> Tensor:
    """Weight of the teacher's labels: 1 where it is sure, else 0."""
    return (confidence_BHW >= threshold).to(confidence_BHW.dtype)


def pixel_weight(confidence_BHW: Tensor) -> Tensor:
    """Confidence in [0, 1] to weight: 0 up to one half, 1 at full confidence."""
    return torch.clamp(2 * confidence_BHW - 1, min=0.0)
