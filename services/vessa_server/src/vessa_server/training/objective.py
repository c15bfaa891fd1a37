"""What Stage 1 minimises: all five steps on an episode, and their losses.

Axes: N images of the batch, P image-class pairs, K templates, R = P*K, H W space.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vessa_server.matching.template_matcher import TemplateMatcher
from vessa_server.model.preprocess import normalise, overlay, vlm_view
from vessa_server.model.reasoner import IGNORED, PromptPrefix, VisualTokens
from vessa_server.model.vessa import (
    Conditioned,
    Decoded,
    ImageFeatures,
    TemplateFeatures,
    Vessa,
)
from vessa_server.training.config import TrainingConfig
from vessa_server.training.episodes import Episode
from vessa_server.training.losses import hard_dice, hard_iou, mask_loss


@dataclasses.dataclass(frozen=True)
class StepOutput:
    """Losses and scores of one batch; ``total`` is what is minimised."""

    total: Tensor
    scalars: dict[str, float]
    one_shot: Decoded
    template_P: Tensor


class Objective(nn.Module):
    """The model with its loss, so that data-parallel training can wrap both."""

    def __init__(self, model: Vessa, config: TrainingConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config

    def forward(self, episode: Episode) -> StepOutput:
        """Loss of one batch."""
        return forward(self.model, episode, self.config)


def forward(model: Vessa, episode: Episode, config: TrainingConfig) -> StepOutput:
    """All five steps on an episode, decoded once without and once with student masks."""
    features = model.encode_image(
        normalise(episode.image_N3HW, model.config),
        vlm_view(episode.image_N3HW, model.config.vlm.image_size),
    )
    image_P = episode.image_P
    template_PK = choose_templates(features, episode, config)
    template_R = template_PK.flatten()
    shown_R = _repeat(episode, template_PK.shape[1]).shown_masks(template_R)
    templates = model.encode_template(features.select(template_R), shown_R)
    conditioned, language = _condition(model, episode, features, template_PK[:, 0], templates)
    target = F.adaptive_avg_pool2d(episode.masks(), model.config.image_size // 2)
    target = (target >= 0.5).float()
    heard = _misled(conditioned, episode, config)
    one_shot = model.decode(features, image_P, heard, None, None)
    every = torch.ones_like(image_P, dtype=torch.bool)
    refined = model.decode(features, image_P, heard, episode.student_P1HW, every)
    losses: dict[str, Tensor] = {"language": config.language_weight * language}
    for name, decoded in (("one_shot", one_shot), ("refined", refined)):
        losses |= {f"{name}/{k}": v for k, v in _decoder_losses(decoded, target, config).items()}
    prior = conditioned.prior_P1HW
    shown, asked = (
        F.adaptive_avg_pool2d(mask, prior.shape[-1])
        for mask in (episode.shown_masks(image_P), episode.masks())
    )
    losses["prior"] = config.prior_weight * mask_loss(torch.logit(prior, eps=1e-4), shown)
    losses["seg_map"] = config.seg_map_weight * mask_loss(conditioned.seg_map_P1HW, asked)
    total = torch.stack(list(losses.values())).sum()
    scalars = {f"loss/{name}": float(value.detach()) for name, value in losses.items()}
    scalars |= _scores(one_shot, refined, episode, conditioned, target)
    return StepOutput(
        total, scalars | {"loss/total": float(total.detach())}, one_shot, template_PK[:, 0]
    )


def choose_templates(features: ImageFeatures, episode: Episode, config: TrainingConfig) -> Tensor:
    """(P, K) templates: the best retrieved ones, or random candidates.

    Where there are several, the last one is now and then of another task, as a wrong one in a
    bank would be.
    """
    device = episode.candidates_PN.device
    scores = torch.rand(episode.candidates_PN.shape).to(device)
    if float(torch.rand(())) < config.retrieval_probability:
        with torch.no_grad():
            for value in episode.class_P.unique():
                rows = episode.class_P == value
                masks = (episode.labels_NHW == value).float()[:, None]
                side = features.match_BDHW.shape[-1]
                embeddings = TemplateMatcher.describe(
                    features.match_BDHW, F.adaptive_avg_pool2d(masks, side)
                )
                similarity = TemplateMatcher.retrieval_scores(features.match_BDHW, embeddings)
                scores[rows] = similarity[episode.image_P[rows]].to(scores.dtype)
    scores = scores.masked_fill(~episode.candidates_PN, -torch.inf)
    count = int(torch.randint(1, config.max_templates + 1, ()))
    best_PK = scores.topk(count, dim=1)
    # A pair with fewer candidates than templates sees its best one again.
    chosen_PK = torch.where(best_PK.values > -torch.inf, best_PK.indices, best_PK.indices[:, :1])
    elsewhere_PN = episode.group_N[episode.image_P][:, None] != episode.group_N
    if count > 1 and bool(elsewhere_PN.any(dim=1).all()):
        distract_P = torch.rand(chosen_PK.shape[0]).to(device) < config.distractor_probability
        wrong_P = torch.multinomial(elsewhere_PN.float(), 1)[:, 0]
        chosen_PK[:, -1] = torch.where(distract_P, wrong_P, chosen_PK[:, -1])
    return chosen_PK


def _repeat(episode: Episode, count: int) -> Episode:
    """The episode with each pair ``count`` times in a row, for its templates."""
    return dataclasses.replace(
        episode,
        image_P=episode.image_P.repeat_interleave(count),
        class_P=episode.class_P.repeat_interleave(count),
        shown_PV=episode.shown_PV.repeat_interleave(count, dim=0),
    )


def _condition(
    model: Vessa,
    episode: Episode,
    features: ImageFeatures,
    first_P: Tensor,
    templates: TemplateFeatures,
) -> tuple[Conditioned, Tensor]:
    """Steps 2 to 4. The VLM reads the overlay of the best template, ``first_P``, only."""
    image_P = episode.image_P
    tinted = overlay(episode.image_N3HW, episode.labels_NHW)
    views = model.reasoner.see(vlm_view(tinted, model.config.vlm.image_size))
    prefix = _prefix(model, episode.prompts, views, first_P)
    answers = model.reasoner.answer_ids(episode.answers).to(image_P.device)
    longest = int((answers != IGNORED).sum(dim=1).max())
    reasoned = model.reason(prefix, features, image_P, answers[:, :longest])
    matched = model.match(features, image_P, templates)
    conditioned = Conditioned(
        top_PDHW=model.remember(features, image_P, templates),
        prior_P1HW=matched.prior_P1HW,
        points_PN2=matched.points_PN2,
        labels_PN=matched.labels_PN,
        seg_P1D=reasoned.seg_P1D,
        seg_map_P1HW=reasoned.seg_map_P1HW,
    )
    return conditioned, reasoned.loss


def _misled(conditioned: Conditioned, episode: Episode, config: TrainingConfig) -> Conditioned:
    """Now and then no answer of the VLM, or one to another question.

    The VLM knows the training's organs better than it will know a user's; the decoder has to
    learn to trust it as far as the template bears it out.
    """
    pairs = len(episode.image_P)
    if float(torch.rand(())) < config.seg_dropout:
        other_P = torch.arange(pairs)
        weight_P = torch.zeros(pairs)
    else:
        told = episode.shown_PV.sum(dim=1).cpu() == 1
        wrong = told & (torch.rand(pairs) < config.seg_distractor_probability)
        other_P = torch.where(wrong, torch.randperm(pairs), torch.arange(pairs))
        weight_P = torch.ones(pairs)
    seg, seg_map = conditioned.seg_P1D, conditioned.seg_map_P1HW
    other_P, weight_P = other_P.to(seg.device), weight_P.to(seg.device)
    return dataclasses.replace(
        conditioned,
        seg_P1D=seg[other_P] * weight_P[:, None, None],
        seg_map_P1HW=seg_map[other_P] * weight_P[:, None, None, None],
    )


def _prefix(model: Vessa, prompts: list[str], views: VisualTokens, first_P: Tensor) -> PromptPrefix:
    """Text and template of each pair. Pairs that share both share the computation."""
    asked = list(zip(prompts, first_P.tolist(), strict=True))
    different = list(dict.fromkeys(asked))
    ids, mask = model.reasoner.tokenize([text for text, _ in different])
    longest = int(mask.sum(dim=1).max())
    shown = views.select(torch.tensor([t for _, t in different], device=first_P.device))
    prefix = model.reasoner.prefix(ids[:, -longest:], mask[:, -longest:], shown)
    return prefix.select(torch.tensor([different.index(a) for a in asked], device=first_P.device))


def _decoder_losses(decoded: Decoded, target: Tensor, config: TrainingConfig) -> dict[str, Tensor]:
    logits = F.interpolate(decoded.class_logits(), size=target.shape[-2:], mode="bilinear")
    present = (target.flatten(1).sum(dim=1) > 0).float()
    return {
        "mask": mask_loss(logits, target),
        "iou": config.iou_weight * F.mse_loss(decoded.iou_P, hard_iou(logits, target)),
        "presence": config.presence_weight
        * F.binary_cross_entropy_with_logits(decoded.presence_P, present),
    }


@torch.no_grad()
def _scores(
    one_shot: Decoded,
    refined: Decoded,
    episode: Episode,
    conditioned: Conditioned,
    target: Tensor,
) -> dict[str, float]:
    size = target.shape[-2:]

    def dice(logits: Tensor) -> float:
        return float(hard_dice(F.interpolate(logits, size=size, mode="bilinear"), target).mean())

    return {
        "dice/one_shot": dice(one_shot.class_logits()),
        "dice/refined": dice(refined.class_logits()),
        "dice/student": dice(episode.student_P1HW - 0.5),
        "dice/prior": dice(conditioned.prior_P1HW - 0.5),
        "dice/seg_map": dice(conditioned.seg_map_P1HW),
    }


@torch.no_grad()
def picture(episode: Episode, output: StepOutput) -> Tensor:
    """Rows of template with mask, image with prediction, image with ground truth."""
    images, image_P = episode.image_N3HW, episode.image_P
    first = output.template_P
    size = images.shape[-2:]
    logits = F.interpolate(output.one_shot.class_logits(), size=size, mode="bilinear")
    panels = [
        overlay(images[first], episode.shown_masks(first)[:, 0]),
        overlay(images[image_P], (logits[:, 0] > 0)),
        overlay(images[image_P], episode.masks()[:, 0]),
    ]
    return torch.cat(panels, dim=3)[:8]
