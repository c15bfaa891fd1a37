"""L = L_x + λ_u L_u + λ_v(t) L_v of one batch.

Axes: B batch, C classes with background, H W space.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ssl_trainer import schedule
from ssl_trainer.assistant.assistant import PseudoLabel
from ssl_trainer.config import TrainConfig, UnlabelledLoss
from ssl_trainer.data.batches import LabelledBatch, UnlabelledBatch
from ssl_trainer.methods import losses, quality
from ssl_trainer.methods.losses import Scalars
from ssl_trainer.methods.unimatch import pooling
from ssl_trainer.methods.unimatch.dropout import complementary_masks
from ssl_trainer.methods.unimatch.views import Boxes, CutMix, Jitter, jittered
from ssl_trainer.models import Student, probabilities
from vessa_common.precision import Precision, autocast
from vessa_common.transfer import send, to_device


class Target(NamedTuple):
    """What a strong view should show: labels and a weight for each pixel."""

    labels_BHW: Tensor
    weight_BHW: Tensor

    def mix(self, cutmix: CutMix) -> Target:
        """The target of the mixed view."""
        return Target(cutmix.mix(self.labels_BHW), cutmix.mix(self.weight_BHW))


class StrongViews(NamedTuple):
    """Two strong views of each slice, one after the other, and what they should show."""

    image_B1HW: Tensor
    channel_masks: list[Tensor]
    mixes: list[CutMix]
    from_teacher: Target
    from_vessa: Target | None


class StudentPasses(nn.Module):
    """Both passes of the student as one module, so that data-parallel training can wrap it."""

    def __init__(self, student: Student, wanted: Precision) -> None:
        super().__init__()
        self.student = student
        self.wanted: Precision = wanted

    def forward(
        self, labelled_B1HW: Tensor, views: StrongViews | None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits of labelled slices and, where there are any, of strong views."""
        with autocast(labelled_B1HW.device, self.wanted):
            labelled = self.student(labelled_B1HW)
            if views is None:
                return labelled.float(), None
            strong = self.student(views.image_B1HW, views.channel_masks)
        return labelled.float(), strong.float()


@dataclass(frozen=True)
class _Drawn:
    """What is drawn for the two strong views: jitter and channels of both, and boxes of each."""

    jitter: Jitter
    first: Boxes
    second: Boxes
    channels_BC: Tensor

    @staticmethod
    def draw(
        rng: np.random.Generator, count: int, channels: tuple[int, ...], config: TrainConfig
    ) -> _Drawn:
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        dropout = config.unimatch.dropout_probability
        masks = complementary_masks(count, channels, dropout, generator)
        size, probability = config.data.size, config.unimatch.cutmix_probability
        first, second = (Boxes.draw(count, size, probability, rng) for _ in range(2))
        both = torch.cat([torch.cat(view, dim=1) for view in masks])
        return _Drawn(Jitter.draw(rng, 2 * count), first, second, both)


def strong_views(
    batch: UnlabelledBatch,
    answers: list[PseudoLabel | None],
    teacher: nn.Module,
    channels: tuple[int, ...],
    config: TrainConfig,
    step: int,
    rng: np.random.Generator,
    *,
    logged: bool,
) -> tuple[StrongViews, Scalars]:
    """Labels of teacher and VESSA for a batch, its two strong views, and what to log if it is."""
    device = batch.image_B1HW.device
    drawn = to_device(_Drawn.draw(rng, len(batch.slices), channels, config), device)
    with autocast(device, config.precision):
        teacher_BCHW = probabilities(teacher, batch.image_B1HW)
    warped = _warped(batch, answers)
    targets = _targets(batch, warped, teacher_BCHW, config, step)
    mixes = [boxes.cutmix(config.data.size) for boxes in (drawn.first, drawn.second)]
    strong = jittered(batch.image_B1HW.repeat(2, 1, 1, 1), drawn.jitter).chunk(2)
    images = torch.cat([mix.mix(view) for mix, view in zip(mixes, strong, strict=True)])
    views = StrongViews(images, list(drawn.channels_BC.split(channels, dim=1)), mixes, *targets)
    if not logged:
        return views, {}
    answered = [answer is not None for answer in answers]
    return views, _scalars(batch, targets[0], warped, answered, config)


def _scalars(
    batch: UnlabelledBatch,
    teacher: Target,
    vessa: _Warped | None,
    answered: list[bool],
    config: TrainConfig,
) -> Scalars:
    """How sure the teacher is, how far VESSA agrees, and how good both are where it is watched."""
    scalars: Scalars = {"teacher/confident": teacher.weight_BHW.mean()}
    if config.data.watch_quality:
        vessa_BHW = None if vessa is None else vessa.labels_BHW
        scalars |= quality.watch(batch, teacher.labels_BHW, vessa_BHW, answered)
    if vessa is not None:
        same_BHW = (vessa.labels_BHW == teacher.labels_BHW)[answered]
        inside_BHW = batch.inside()[answered]
        scalars["assistant/agreement"] = (same_BHW & inside_BHW).sum() / inside_BHW.sum()
    return scalars


def batch_loss(
    passes: nn.Module,
    labelled: LabelledBatch,
    views: StrongViews | None,
    config: TrainConfig,
    assistant_weight: float,
) -> tuple[Tensor, Scalars]:
    """The loss of one batch, and its parts."""
    logits, strong_logits = passes(labelled.image_B1HW, views)
    total = losses.supervised_loss(logits, labelled.labels_BHW)
    scalars: Scalars = {"loss/supervised": total.detach()}
    if views is None:
        return total, scalars
    assert strong_logits is not None
    strong = torch.log_softmax(strong_logits, dim=1)
    consistency = _mixed(views.from_teacher, views, strong, config.unimatch.loss)
    total = total + config.unimatch.weight * consistency
    scalars["loss/consistency"] = consistency.detach()
    if views.from_vessa is not None:
        assistance = _mixed(views.from_vessa, views, strong, config.assistant.loss)
        total = total + assistant_weight * assistance
        scalars |= {
            "loss/assistant": assistance.detach(),
            "assistant/weight": assistant_weight,
        }
    return total, scalars


def _mixed(target: Target, views: StrongViews, strong: Tensor, kind: UnlabelledLoss) -> Tensor:
    """Mean loss of the two strong views."""
    loss = losses.UNLABELLED[kind]
    both = zip(strong.chunk(2), views.mixes, strict=True)
    return torch.stack([loss(own, *target.mix(mix)) for own, mix in both]).mean()


def _targets(
    batch: UnlabelledBatch,
    warped: _Warped | None,
    teacher_BCHW: Tensor,
    config: TrainConfig,
    step: int,
) -> tuple[Target, Target | None]:
    """Pseudo-labels of teacher and VESSA.

    The teacher's count where it is confident. VESSA's, with the teacher's share in them, are
    weighted by confidence and predicted IoU. Padding counts nowhere.
    """
    confidence, labels = teacher_BCHW.max(dim=1)
    inside = batch.inside()
    sure = losses.confident(confidence, config.unimatch.confidence_threshold) * inside
    if warped is None:
        return Target(labels, sure), None
    share = schedule.teacher_share(step, config.steps, config.assistant)
    pooled = pooling.pooled(warped.labels_BHW, warped.confidence_BHW, teacher_BCHW, share)
    weight_BHW = losses.pixel_weight(pooled[1]) * warped.iou_B[:, None, None] * inside
    return Target(labels, sure), Target(pooled[0], weight_BHW)


class _Warped(NamedTuple):
    """VESSA's answers in the views of a batch; all is 0 where there is none."""

    labels_BHW: Tensor
    confidence_BHW: Tensor
    iou_B: Tensor


def _warped(batch: UnlabelledBatch, answers: list[PseudoLabel | None]) -> _Warped | None:
    """None without any answer."""
    if all(answer is None for answer in answers):
        return None
    nothing = np.zeros((1, 1), np.uint8)
    known = [answer or PseudoLabel(nothing, nothing, 0.0) for answer in answers]
    labels = [torch.tensor(answer.labels)[None] for answer in known]
    confidence = [torch.tensor(answer.confidence)[None] for answer in known]
    iou_B = torch.tensor([answer.predicted_iou for answer in known])
    return _Warped(
        batch.warp(labels, mode="nearest")[:, 0].long(),
        batch.warp(confidence, mode="bilinear")[:, 0] / 255,
        send(iou_B, batch.image_B1HW.device),
    )
