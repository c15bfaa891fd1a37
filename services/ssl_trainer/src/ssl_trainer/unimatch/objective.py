"""L = L_x + λ_u L_u + λ_v(t) L_v of one batch.

Axes: B batch, C classes with background, H W space.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ssl_trainer.assistant.assistant import PseudoLabel
from ssl_trainer.config import Precision, TrainConfig, UnlabelledLoss
from ssl_trainer.data.batches import LabelledBatch, UnlabelledBatch
from ssl_trainer.models import Student, predict_probabilities
from ssl_trainer.unimatch import losses, quality, schedule
from ssl_trainer.unimatch.dropout import complementary_masks
from ssl_trainer.unimatch.precision import precision
from ssl_trainer.unimatch.views import CutMix, jitter


class Target(NamedTuple):
    """What a strong view should show: labels and a weight for each pixel."""

    labels_BHW: Tensor
    weight_BHW: Tensor

    def mix(self, cutmix: CutMix) -> Target:
        """The target of the mixed view."""
        return Target(cutmix.mix(self.labels_BHW), cutmix.mix(self.weight_BHW))

    def to(self, device: torch.device) -> Target:
        """The target on another device."""
        return Target(self.labels_BHW.to(device), self.weight_BHW.to(device))


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
        device = next(self.student.parameters()).device
        with precision(device, self.wanted):
            labelled = self.student(labelled_B1HW.to(device))
            if views is None:
                return labelled.float(), None
            masks = [mask.to(device) for mask in views.channel_masks]
            strong = self.student(views.image_B1HW.to(device), masks)
        return labelled.float(), strong.float()


def strong_views(
    batch: UnlabelledBatch,
    answers: list[PseudoLabel | None],
    teacher: nn.Module,
    channels: tuple[int, ...],
    config: TrainConfig,
    step: int,
    rng: np.random.Generator,
) -> tuple[StrongViews, dict[str, float]]:
    """Labels of teacher and VESSA for a batch, its two strong views, and what to log."""
    size, count = config.data.size, len(batch.slices)
    with precision(next(teacher.parameters()).device, config.precision):
        teacher_BCHW = predict_probabilities(teacher, batch.image_B1HW)
    confidence, labels = teacher_BCHW.max(dim=1)
    sure = losses.confident(confidence, config.unimatch.confidence_threshold)
    share = schedule.teacher_share(step, config.steps, config.assistant)
    weighted = config.assistant.confidence_weighting
    from_vessa = _from_vessa(batch, answers, teacher_BCHW, share, weighted=weighted)
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    dropout = config.unimatch.dropout_probability
    masks = complementary_masks(count, channels, dropout, generator)
    mixes = [CutMix.draw(count, size, config.unimatch.cutmix_probability, rng) for _ in range(2)]
    images = torch.cat([mix.mix(jitter(batch.image_B1HW, rng)) for mix in mixes])
    both = [torch.cat(pair) for pair in zip(*masks, strict=True)]
    scalars = {"teacher/confident": float(sure.mean())}
    if config.data.watch_quality:
        answered = [answer is not None for answer in answers]
        vessa = from_vessa.labels_BHW if from_vessa else None
        scalars |= quality.watch(batch, labels, vessa, answered)
    if from_vessa is not None:
        scalars |= {
            "assistant/agreement": float((from_vessa.labels_BHW == labels).float().mean()),
            "assistant/answered": sum(a is not None for a in answers) / len(answers),
        }
    return StrongViews(images, both, mixes, Target(labels, sure), from_vessa), scalars


def batch_loss(
    passes: nn.Module,
    labelled: LabelledBatch,
    views: StrongViews | None,
    config: TrainConfig,
    step: int,
    assistant_weight: float,
) -> tuple[Tensor, dict[str, float]]:
    """The loss of one batch, and its parts."""
    logits, strong_logits = passes(labelled.image_B1HW, views)
    total = losses.supervised_loss(logits, labelled.labels_BHW.to(logits.device))
    scalars = {"loss/supervised": float(total.detach())}
    if views is None:
        return total, scalars
    consistency = _mixed(views.from_teacher, views, strong_logits, config.unimatch.loss)
    total = total + schedule.consistency_weight(step, config.steps, config.unimatch) * consistency
    scalars["loss/consistency"] = float(consistency.detach())
    if views.from_vessa is not None:
        assistance = _mixed(views.from_vessa, views, strong_logits, config.assistant.loss)
        total = total + assistant_weight * assistance
        scalars |= {
            "loss/assistant": float(assistance.detach()),
            "assistant/weight": assistant_weight,
        }
    return total, scalars


def _mixed(target: Target, views: StrongViews, logits: Tensor, kind: UnlabelledLoss) -> Tensor:
    """Mean loss of the two strong views."""
    loss = losses.UNLABELLED[kind]
    both = zip(logits.chunk(2), views.mixes, strict=True)
    return torch.stack([loss(own, *target.mix(mix).to(own.device)) for own, mix in both]).mean()


def _from_vessa(
    batch: UnlabelledBatch,
    answers: list[PseudoLabel | None],
    teacher_BCHW: Tensor,
    share: float,
    *,
    weighted: bool,
) -> Target | None:
    """VESSA's answers in the views of a batch, with a share of the teacher's; None without any.

    ``weighted`` by confidence and predicted IoU; else all that is in the slice counts fully.
    """
    if all(answer is None for answer in answers):
        return None
    labels, weights = [], []
    for index, answer in enumerate(answers):
        if answer is None:
            nothing = torch.zeros(batch.image_B1HW.shape[-2:])
            labels.append(nothing.long())
            weights.append(nothing)
            continue
        native = torch.tensor(answer.labels).float()[None]
        told_HW = batch.warp(index, native, mode="nearest")[0].long()
        confidence = torch.tensor(answer.confidence).float()[None] / 255
        sure_HW = batch.warp(index, confidence, mode="bilinear")[0]
        inside_HW = (sure_HW > 0).float()  # confidence is 0 outside of the slice only
        pooled_HW, confidence_HW = pooled(told_HW, sure_HW, teacher_BCHW[index], share)
        labels.append(pooled_HW)
        weight_HW = losses.pixel_weight(confidence_HW) * answer.predicted_iou
        weights.append(weight_HW * inside_HW if weighted else inside_HW)
    return Target(torch.stack(labels), torch.stack(weights))


def pooled(
    labels_HW: Tensor, confidence_HW: Tensor, teacher_CHW: Tensor, share: float
) -> tuple[Tensor, Tensor]:
    """Labels of the mean of VESSA and teacher, and how sure that is.

    VESSA tells its label and how sure it is; the rest of its probability is taken to be on the
    teacher's label, where that is another one: on ACDC as good as its real probabilities.
    """
    if share == 0:
        return labels_HW, confidence_HW
    sure_HW, other_HW = teacher_CHW.max(dim=0)
    agreed_HW = teacher_CHW.gather(0, labels_HW[None])[0]
    own_HW = (1 - share) * confidence_HW + share * agreed_HW
    against_HW = (1 - share) * (1 - confidence_HW) + share * sure_HW
    overruled_HW = (other_HW != labels_HW) & (against_HW > own_HW)
    return (
        torch.where(overruled_HW, other_HW, labels_HW),
        torch.where(overruled_HW, against_HW, own_HW),
    )
