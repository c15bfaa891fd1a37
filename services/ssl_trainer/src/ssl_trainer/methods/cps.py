"""Cross pseudo supervision (Chen et al., CVPR 2021), with what SSL4MIS sets for ACDC.

Axes: B batch, C classes with background, H W space.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_trainer import schedule
from ssl_trainer.methods import losses
from ssl_trainer.methods.losses import Scalars
from ssl_trainer.methods.method import Batch, Method


class CrossPseudoSupervision(Method):
    """Two students, different at first, learn each other's labels.

    The published method has no teacher; here, as with all methods, the first student's average
    predicts.
    """

    count = 2

    def loss(self, batch: Batch) -> tuple[Tensor, Scalars]:
        """See :class:`Method`."""
        labelled, unlabelled = batch.labelled, batch.unlabelled
        images = [labelled.image_B1HW]
        if unlabelled is not None:
            images.append(unlabelled.image_B1HW)
        both = [self.logits(student, *images) for student in self.students]
        labels_BHW = labelled.labels_BHW
        total = torch.stack([losses.supervised_loss(own[0], labels_BHW) for own in both]).sum()
        scalars: Scalars = {"loss/supervised": total.detach()}
        if unlabelled is None:
            return total, scalars
        one_BCHW, other_BCHW = (own[1] for own in both)
        crossed = cross_supervision(one_BCHW, other_BCHW, unlabelled.inside())
        weight = self.config.cps.weight * schedule.ramp_up(batch.step, self.config.steps)
        scalars["loss/consistency"] = crossed.detach()
        scalars |= self.watched(batch, other_BCHW.argmax(dim=1))
        return total + weight * crossed, scalars


def cross_supervision(one_BCHW: Tensor, other_BCHW: Tensor, inside_BHW: Tensor) -> Tensor:
    """Cross-entropy of either's logits with the other's labels; padding does not count."""
    pairs = (one_BCHW, other_BCHW), (other_BCHW, one_BCHW)
    weight_BHW = inside_BHW.float()
    return torch.stack(
        [
            losses.weighted_cross_entropy(
                torch.log_softmax(own, dim=1), others.argmax(dim=1), weight_BHW
            )
            for own, others in pairs
        ]
    ).sum()
