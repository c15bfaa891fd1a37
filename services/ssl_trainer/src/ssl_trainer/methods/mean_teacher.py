"""Mean Teacher (Tarvainen and Valpola, 2017), with what SSL4MIS sets for ACDC.

Axes: B batch, C classes with background, H W space.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ssl_trainer import schedule
from ssl_trainer.data import noise
from ssl_trainer.methods import losses
from ssl_trainer.methods.losses import Scalars
from ssl_trainer.methods.method import Batch, Method
from vessa_common.transfer import send

# Deviation of white noise and where it is cut off, for images in [0, 1]; SSL4MIS.
NOISE, MOST_NOISE = 0.1, 0.2


class MeanTeacher(Method):
    """The student should say of a noisy view what the teacher says of the clean one."""

    def loss(self, batch: Batch) -> tuple[Tensor, Scalars]:
        """See :class:`Method`."""
        labelled, unlabelled = batch.labelled, batch.unlabelled
        images = [labelled.image_B1HW]
        if unlabelled is not None:
            images.append(noisy(unlabelled.image_B1HW, batch.rng))
        logits, *others = self.logits(self.student, *images)
        total = losses.supervised_loss(logits, labelled.labels_BHW)
        scalars: Scalars = {"loss/supervised": total.detach()}
        if unlabelled is None:
            return total, scalars
        taught_BCHW = self.taught(unlabelled.image_B1HW)
        found_BCHW = torch.softmax(others[0], dim=1)
        consistency = squared_error(found_BCHW, taught_BCHW, unlabelled.inside())
        weight = self.config.mean_teacher.weight
        weight *= schedule.ramp_up(batch.step, self.config.steps)
        scalars["loss/consistency"] = consistency.detach()
        scalars |= self.watched(batch, taught_BCHW.argmax(dim=1))
        return total + weight * consistency, scalars


def noisy(image_B1HW: Tensor, rng: np.random.Generator) -> Tensor:
    """With white noise of small values."""
    place_B2 = send(noise.draw_places(rng, len(image_B1HW)), image_B1HW.device)
    grain_B1HW = noise.white(place_B2, image_B1HW.shape[-1])
    return image_B1HW + (NOISE * grain_B1HW).clamp(-MOST_NOISE, MOST_NOISE)


def squared_error(found_BCHW: Tensor, target_BCHW: Tensor, inside_BHW: Tensor) -> Tensor:
    """Mean over all pixels and classes; padding counts as if it were right."""
    error_BHW = ((found_BCHW - target_BCHW) ** 2).mean(dim=1)
    return (error_BHW * inside_BHW).mean()
