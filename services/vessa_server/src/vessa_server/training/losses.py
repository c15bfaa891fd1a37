"""Losses of Stage 1. Axes: P image-class pairs, H W space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def averaged(values_P: Tensor, weight_P: Tensor) -> Tensor:
    """Mean over the pairs that count; 0 where none does."""
    return (values_P * weight_P).sum() / weight_P.sum().clamp(min=1)


def soft_dice_loss(probability_P1HW: Tensor, target_P1HW: Tensor) -> Tensor:
    """1 - soft Dice of each pair, (P,); smoothed by one pixel, so empty targets are defined."""
    overlap = (probability_P1HW * target_P1HW).flatten(1).sum(dim=1)
    total = (probability_P1HW + target_P1HW).flatten(1).sum(dim=1)
    return 1 - (2 * overlap + 1) / (total + 1)


def mask_loss(logits_P1HW: Tensor, target_P1HW: Tensor, weight_P: Tensor) -> Tensor:
    """Binary cross-entropy plus Dice, averaged over the pairs that count (VESSA, section 3.1)."""
    logits = logits_P1HW.float()
    entropy = F.binary_cross_entropy_with_logits(logits, target_P1HW, reduction="none")
    dice = soft_dice_loss(torch.sigmoid(logits), target_P1HW)
    return averaged(entropy.flatten(1).mean(dim=1) + dice, weight_P)


@torch.no_grad()
def hard_iou(logits_P1HW: Tensor, target_P1HW: Tensor) -> Tensor:
    """Intersection over union of the masks at logit 0, (P,); 1 where both are empty."""
    predicted, target = logits_P1HW > 0, target_P1HW > 0.5
    intersection = (predicted & target).flatten(1).sum(dim=1).float()
    union = (predicted | target).flatten(1).sum(dim=1).float()
    return torch.where(union > 0, intersection / union.clamp(min=1), torch.ones_like(union))


@torch.no_grad()
def hard_dice(logits_P1HW: Tensor, target_P1HW: Tensor) -> Tensor:
    """Dice of the masks at logit 0, (P,); 1 where both are empty."""
    iou = hard_iou(logits_P1HW, target_P1HW)
    return 2 * iou / (1 + iou)
