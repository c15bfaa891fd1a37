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
    *,
    logged: bool,
) -> tuple[StrongViews, dict[str, float]]:
    """Labels of teacher and VESSA for a batch, its two strong views, and what to log if it is."""
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
    views = StrongViews(images, both, mixes, Target(labels, sure), from_vessa)
    return views, _scalars(batch, answers, views, config) if logged else {}


def _scalars(
    batch: UnlabelledBatch,
    answers: list[PseudoLabel | None],
    views: StrongViews,
    config: TrainConfig,
) -> dict[str, float]:
    """How sure the teacher is, how far VESSA agrees, and how good both are where it is watched."""
    teacher, vessa = views.from_teacher, views.from_vessa
    answered = [answer is not None for answer in answers]
    scalars = {"teacher/confident": float(teacher.weight_BHW.mean())}
    if config.data.watch_quality:
        told_BHW = None if vessa is None else vessa.labels_BHW
        scalars |= quality.watch(batch, teacher.labels_BHW, told_BHW, answered)
    if vessa is not None:
        same_BHW = (vessa.labels_BHW == teacher.labels_BHW)[answered]
        scalars |= {
            "assistant/agreement": float(same_BHW.float().mean()),
            "assistant/answered": sum(answered) / len(answered),
        }
    return scalars


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
    assert strong_logits is not None
    strong = torch.log_softmax(strong_logits, dim=1)
    consistency = _mixed(views.from_teacher, views, strong, config.unimatch.loss)
    total = total + schedule.consistency_weight(step, config.steps, config.unimatch) * consistency
    scalars["loss/consistency"] = float(consistency.detach())
    if views.from_vessa is not None:
        assistance = _mixed(views.from_vessa, views, strong, config.assistant.loss)
        total = total + assistant_weight * assistance
        scalars |= {
            "loss/assistant": float(assistance.detach()),
            "assistant/weight": assistant_weight,
        }
    return total, scalars


def _mixed(target: Target, views: StrongViews, strong: Tensor, kind: UnlabelledLoss) -> Tensor:
    """Mean loss of the two strong views."""
    loss = losses.UNLABELLED[kind]
    both = zip(strong.chunk(2), views.mixes, strict=True)
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
    shape = (len(answers), *batch.image_B1HW.shape[-2:])
    told_BHW, sure_BHW = torch.zeros(shape, dtype=torch.long), torch.zeros(shape)
    iou_B11 = torch.zeros(len(answers), 1, 1)
    for index, answer in enumerate(answers):
        if answer is not None:
            labels, confidence = torch.tensor(answer.labels), torch.tensor(answer.confidence)
            told_BHW[index] = batch.warp(index, labels.float()[None], mode="nearest")[0]
            sure_BHW[index] = batch.warp(index, confidence.float()[None] / 255, mode="bilinear")[0]
            iou_B11[index] = answer.predicted_iou
    inside_BHW = (sure_BHW > 0).float()  # confidence is 0 outside of the slice only
    pooled_BHW, confidence_BHW = pooled(told_BHW, sure_BHW, teacher_BCHW, share)
    weight_BHW = losses.pixel_weight(confidence_BHW) * iou_B11
    return Target(pooled_BHW, weight_BHW * inside_BHW if weighted else inside_BHW)


def pooled(
    labels_BHW: Tensor, confidence_BHW: Tensor, teacher_BCHW: Tensor, share: float
) -> tuple[Tensor, Tensor]:
    """Labels of the mean of VESSA and teacher, and how sure that is.

    VESSA tells its label and how sure it is; the rest of its probability is taken to be on the
    teacher's label, where that is another one: on ACDC as good as its real probabilities.
    """
    if share == 0:
        return labels_BHW, confidence_BHW
    sure_BHW, other_BHW = teacher_BCHW.max(dim=1)
    agreed_BHW = teacher_BCHW.gather(1, labels_BHW[:, None])[:, 0]
    own_BHW = (1 - share) * confidence_BHW + share * agreed_BHW
    against_BHW = (1 - share) * (1 - confidence_BHW) + share * sure_BHW
    overruled_BHW = (other_BHW != labels_BHW) & (against_BHW > own_BHW)
    return (
        torch.where(overruled_BHW, other_BHW, labels_BHW),
        torch.where(overruled_BHW, against_BHW, own_BHW),
    )
