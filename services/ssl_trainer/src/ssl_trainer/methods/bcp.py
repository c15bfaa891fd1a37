"""Bidirectional copy-paste (Bai et al., CVPR 2023), with what its authors set for ACDC.

Labelled images are pasted into unlabelled ones, and the other way round. Each image takes part in
both directions, where the authors halve batches of 24: ours are small.

Axes: B batch, C classes with background, H W space.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_trainer.data.batches import LabelledBatch, UnlabelledBatch
from ssl_trainer.evaluation.predictor import keep_largest_components
from ssl_trainer.methods import losses
from ssl_trainer.methods.losses import Scalars
from ssl_trainer.methods.method import Batch, Method
from vessa_common.transfer import send

# Side of the pasted square, of that of the image.
SIDE = 2 / 3


class BidirectionalCopyPaste(Method):
    """Pre-training with labelled images in one another, then with unlabelled ones."""

    def loss(self, batch: Batch) -> tuple[Tensor, Scalars]:
        """See :class:`Method`."""
        pretraining = batch.step < self.config.bcp.pretraining * self.config.steps
        image_B1HW = batch.labelled.image_B1HW
        pasted_HW = send(square(image_B1HW.shape[-1], batch.rng), image_B1HW.device)
        if pretraining or batch.unlabelled is None:
            return self._pretraining(batch.labelled, pasted_HW)
        return self._self_training(batch, batch.unlabelled, pasted_HW)

    def _pretraining(self, labelled: LabelledBatch, pasted_HW: Tensor) -> tuple[Tensor, Scalars]:
        """Each labelled image with a part of the next one."""
        image_B1HW, labels_BHW = labelled.image_B1HW, labelled.labels_BHW
        mixed_B1HW = torch.where(pasted_HW, image_B1HW.roll(1, dims=0), image_B1HW)
        (logits_BCHW,) = self.logits(self.student, mixed_B1HW)
        total = region_loss(logits_BCHW, labels_BHW, ~pasted_HW)
        total = total + region_loss(logits_BCHW, labels_BHW.roll(1, dims=0), pasted_HW)
        return total, {"loss/supervised": total.detach()}

    def _self_training(
        self, batch: Batch, unlabelled: UnlabelledBatch, pasted_HW: Tensor
    ) -> tuple[Tensor, Scalars]:
        """Labelled parts in unlabelled images, and unlabelled parts in labelled images."""
        labels_BHW, image_B1HW = batch.labelled.labels_BHW, batch.labelled.image_B1HW
        view_B1HW, inside_BHW = unlabelled.image_B1HW, unlabelled.inside()
        classes = len(self.config.data.classes)
        pseudo_BHW = largest_components(self.taught(view_B1HW).argmax(dim=1), classes)
        # Another partner in the other direction.
        others_B1HW, others_BHW = view_B1HW.roll(1, dims=0), pseudo_BHW.roll(1, dims=0)
        inward, outward = self.logits(
            self.student,
            torch.where(pasted_HW, image_B1HW, view_B1HW),
            torch.where(pasted_HW, others_B1HW, image_B1HW),
        )
        known = region_loss(inward, labels_BHW, pasted_HW)
        known = known + region_loss(outward, labels_BHW, ~pasted_HW)
        guessed = region_loss(inward, pseudo_BHW, inside_BHW & ~pasted_HW)
        guessed = guessed + region_loss(outward, others_BHW, inside_BHW.roll(1, dims=0) & pasted_HW)
        scalars: Scalars = {
            "loss/supervised": known.detach(),
            "loss/consistency": guessed.detach(),
            **self.watched(batch, pseudo_BHW),
        }
        return known + self.config.bcp.weight * guessed, scalars


def square(size: int, rng: np.random.Generator) -> Tensor:
    """Which pixels are pasted, (size, size) bool: a square anywhere."""
    side = int(SIDE * size)
    top, left = (int(start) for start in rng.integers(0, size - side + 1, 2))
    pasted_HW = torch.zeros(size, size, dtype=torch.bool)
    pasted_HW[top : top + side, left : left + side] = True
    return pasted_HW


def region_loss(logits_BCHW: Tensor, labels_BHW: Tensor, where: Tensor) -> Tensor:
    """Mean of cross-entropy and Dice of a part of the pixels, (B, H, W) or (H, W) bool."""
    weight_BHW = where.expand(labels_BHW.shape).to(logits_BCHW)
    log_probability_BCHW = torch.log_softmax(logits_BCHW, dim=1)
    per_pixel_BHW = F.nll_loss(log_probability_BCHW, labels_BHW, reduction="none")
    cross_entropy = (per_pixel_BHW * weight_BHW).sum() / weight_BHW.sum().clamp(min=1)
    return (cross_entropy + losses.weighted_dice(log_probability_BCHW, labels_BHW, weight_BHW)) / 2


def largest_components(labels_BHW: Tensor, classes: int) -> Tensor:
    """Of each image and class the largest connected component; the rest becomes background.

    They are found on the host, so a GPU is waited for.
    """
    values = range(1, classes + 1)
    plain_BHW = labels_BHW.to(torch.uint8).cpu().numpy()
    kept = [keep_largest_components(labels_HW[None], values)[0] for labels_HW in plain_BHW]
    return send(torch.from_numpy(np.stack(kept)), labels_BHW.device).long()
