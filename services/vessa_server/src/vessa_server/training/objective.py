"""What Stage 1 minimises: all five steps on an episode, and their losses.

Nothing here waits for a device: numbers stay tensors until they are logged.

Axes: N images of the batch, P image-class pairs, M members of a group, K templates, R = P*K,
H W space.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vessa_server.matching.template_matcher import TemplateMatcher
from vessa_server.model import prompts
from vessa_server.model.preprocess import normalise, overlay, vlm_view
from vessa_server.model.reasoner import IGNORED
from vessa_server.model.vessa import (
    Conditioned,
    Decoded,
    ImageFeatures,
    Reasoned,
    TemplateFeatures,
    Vessa,
)
from vessa_server.training.config import TrainingConfig
from vessa_server.training.episodes import Episode
from vessa_server.training.losses import averaged, hard_dice, hard_iou, mask_loss


@dataclasses.dataclass(frozen=True)
class StepOutput:
    """Losses and scores of one batch; ``total`` is what is minimised. All stay on the device."""

    total: Tensor
    scalars: dict[str, Tensor]
    one_shot: Decoded
    template_P: Tensor


class Objective(nn.Module):
    """The model with its loss, so that data-parallel training can wrap both."""

    def __init__(self, model: Vessa, config: TrainingConfig, texts: list[str]) -> None:
        """``texts`` are the prompts that episodes name by their rows; tokenised here, once."""
        super().__init__()
        self.model = model
        self.config = config
        ids_TT, mask_TT = model.reasoner.tokenize(texts)
        self.register_buffer("prompt_ids", ids_TT, persistent=False)
        self.register_buffer("prompt_mask", mask_TT, persistent=False)
        answers = model.reasoner.answer_ids(list(prompts.ANSWERS))
        longest = int((answers >= 0).sum(dim=1).max())
        self.register_buffer("answers", answers[:, :longest], persistent=False)

    def forward(self, episode: Episode) -> StepOutput:
        """All five steps on an episode, decoded without and, every second pair, with a mask."""
        model, config = self.model, self.config
        features = model.encode_image(
            normalise(episode.image_N3HW, model.config),
            vlm_view(episode.image_N3HW, model.config.vlm.image_size) if episode.reads else None,
        )
        image_P = episode.image_P
        shown_P1HW = episode.shown_masks()
        remembered = model.encode_template(features.select(image_P), shown_P1HW)
        template_PK = choose_templates(features, remembered, episode, config)
        templates = remembered.select(template_PK.flatten())
        reasoned = self._reason(episode, features, image_P[template_PK[:, 0]])
        matched = model.match(features, image_P, templates)
        conditioned = Conditioned(
            top_PDHW=model.remember(features, image_P, templates),
            prior_P1HW=matched.prior_P1HW,
            points_PN2=matched.points_PN2,
            labels_PN=matched.labels_PN,
            seg_P1D=reasoned.seg_P1D,
            seg_map_P1HW=reasoned.seg_map_P1HW,
        )
        target = F.adaptive_avg_pool2d(episode.masks(), model.config.image_size // 2)
        target = (target >= 0.5).float()
        one_shot, refined, repaired = self._decode(features, episode, conditioned)
        weight, weight_again = episode.weight_P, episode.weight_P[repaired]
        losses: dict[str, Tensor] = {}
        if episode.reads:
            asked = F.adaptive_avg_pool2d(episode.masks(), reasoned.seg_map_P1HW.shape[-1])
            losses["language"] = config.language_weight * reasoned.loss
            losses["seg_map"] = config.seg_map_weight * mask_loss(
                reasoned.seg_map_P1HW, asked, weight
            )
        losses |= _decoder_losses("one_shot", one_shot, target, weight, config)
        losses |= _decoder_losses("refined", refined, target[repaired], weight_again, config)
        prior = conditioned.prior_P1HW
        shown = F.adaptive_avg_pool2d(shown_P1HW, prior.shape[-1])
        losses["prior"] = config.prior_weight * mask_loss(_logit(prior), shown, weight)
        total = torch.stack(list(losses.values())).sum()
        scalars = {f"loss/{name}": value.detach() for name, value in losses.items()}
        with torch.no_grad():
            scores = {
                "dice/one_shot": (one_shot.class_logits(), target, weight),
                "dice/refined": (refined.class_logits(), target[repaired], weight_again),
                "dice/student": (
                    episode.student_P1HW[repaired] - 0.5,
                    target[repaired],
                    weight_again,
                ),
                "dice/prior": (prior - 0.5, target, weight),
            }
            if episode.reads:
                scores["dice/seg_map"] = (reasoned.seg_map_P1HW, target, weight)
            scalars |= {name: _dice(*values) for name, values in scores.items()}
        return StepOutput(
            total, scalars | {"loss/total": total.detach()}, one_shot, template_PK[:, 0]
        )

    def _reason(self, episode: Episode, features: ImageFeatures, first_P: Tensor) -> Reasoned:
        """Step 3: the VLM reads the overlay of the best template. Zeros where it is not asked."""
        model = self.model
        if not episode.reads:
            return model.unreasoned(features, len(episode.image_P))
        tinted = overlay(episode.image_N3HW, episode.labels_NHW)
        seen = model.reasoner.see(vlm_view(tinted, model.config.vlm.image_size))
        prefix = model.reasoner.prefix(
            self.get_buffer("prompt_ids")[episode.prompt_P],
            self.get_buffer("prompt_mask")[episode.prompt_P],
            seen.select(first_P),
        )
        # Pairs that do not count say nothing.
        answers = self.get_buffer("answers")[episode.answer_P]
        answers = answers.masked_fill(episode.weight_P[:, None] == 0, IGNORED)
        return model.reason(prefix, features, episode.image_P, answers)

    def _decode(
        self, features: ImageFeatures, episode: Episode, conditioned: Conditioned
    ) -> tuple[Decoded, Decoded, Tensor]:
        """Step 5 for all pairs without, and every second one with a student's mask, at once."""
        if episode.reads:
            conditioned = _misled(conditioned, episode, self.config)
        pairs = len(episode.image_P)
        every = torch.arange(pairs, device=episode.image_P.device)
        repaired = every[::2]
        again = torch.cat([every, repaired])
        has_student = again.new_zeros(len(again), dtype=torch.bool)
        has_student[pairs:] = True
        decoded = self.model.decode(
            features,
            episode.image_P[again],
            conditioned.select(again),
            episode.student_P1HW[again],
            has_student,
        )
        parts = [
            Decoded(decoded.logits_P1HW[part], decoded.iou_P[part], decoded.presence_P[part])
            for part in (slice(None, pairs), slice(pairs, None))
        ]
        return parts[0], parts[1], repaired


@torch.no_grad()
def choose_templates(
    features: ImageFeatures,
    remembered: TemplateFeatures,
    episode: Episode,
    config: TrainingConfig,
) -> Tensor:
    """(P, K) pairs whose structure each pair takes as template: the best retrieved, or random.

    Where there are several, the last one is now and then of another task, as a wrong one in a
    bank would be.
    """
    pairs, members = episode.candidates_PM.shape
    device = episode.candidates_PM.device
    every = torch.arange(pairs, device=device)
    # The pairs of one structure follow each other, one for each member.
    first_P = every - every % members
    alike_PM = first_P[:, None] + torch.arange(members, device=device)
    scores_PM = torch.rand(pairs, members, device=device)
    if episode.retrieves:
        scores_PM = TemplateMatcher.retrieval_scores_of_pairs(
            features.match_BDHW[episode.image_P], remembered.embedding_K2D[alike_PM]
        ).float()
    scores_PM = scores_PM.masked_fill(~episode.candidates_PM, -torch.inf)
    best = scores_PM.topk(episode.templates, dim=1)
    # A pair with fewer candidates than templates sees its best one again.
    member_PK = torch.where(best.values > -torch.inf, best.indices, best.indices[:, :1])
    chosen_PK = first_P[:, None] + member_PK
    if episode.templates > 1 and pairs > members:
        distracted_P = torch.rand(pairs, device=device) < config.distractor_probability
        away_P = 1 + (torch.rand(pairs, device=device) * (pairs // members - 1)).long()
        wrong_P = (chosen_PK[:, -1] + away_P * members) % pairs
        chosen_PK[:, -1] = torch.where(distracted_P, wrong_P, chosen_PK[:, -1])
    return chosen_PK


def _misled(conditioned: Conditioned, episode: Episode, config: TrainingConfig) -> Conditioned:
    """Now and then the VLM's answer to another question.

    The VLM knows the training's organs better than it will know a user's; the decoder has to
    learn to trust it as far as the template bears it out.
    """
    pairs, device = len(episode.image_P), episode.image_P.device
    plain_P = episode.shown_PV.sum(dim=1) == 1
    wrong_P = plain_P & (torch.rand(pairs, device=device) < config.seg_distractor_probability)
    every = torch.arange(pairs, device=device)
    other_P = torch.where(wrong_P, torch.rand(pairs, device=device).argsort(), every)
    return dataclasses.replace(
        conditioned,
        seg_P1D=conditioned.seg_P1D[other_P],
        seg_map_P1HW=conditioned.seg_map_P1HW[other_P],
    )


def _logit(probability: Tensor) -> Tensor:
    return torch.logit(probability.float(), eps=1e-4)


def _enlarged(logits_P1HW: Tensor, target_P1HW: Tensor) -> Tensor:
    size = target_P1HW.shape[-2:]
    if logits_P1HW.shape[-2:] == size:
        return logits_P1HW.float()
    return F.interpolate(logits_P1HW.float(), size=size, mode="bilinear")


def _decoder_losses(
    name: str, decoded: Decoded, target: Tensor, weight_P: Tensor, config: TrainingConfig
) -> dict[str, Tensor]:
    logits = _enlarged(decoded.class_logits(), target)
    present = (target.flatten(1).sum(dim=1) > 0).float()
    error = (decoded.iou_P.float() - hard_iou(logits, target)).square()
    entropy = F.binary_cross_entropy_with_logits(
        decoded.presence_P.float(), present, reduction="none"
    )
    return {
        f"{name}/mask": mask_loss(logits, target, weight_P),
        f"{name}/iou": config.iou_weight * averaged(error, weight_P),
        f"{name}/presence": config.presence_weight * averaged(entropy, weight_P),
    }


def _dice(logits: Tensor, target: Tensor, weight_P: Tensor) -> Tensor:
    return averaged(hard_dice(_enlarged(logits, target), target), weight_P)


@torch.no_grad()
def picture(episode: Episode, output: StepOutput) -> Tensor:
    """Rows of template with mask, image with prediction, image with ground truth."""
    images, image_P = episode.image_N3HW, episode.image_P
    first = output.template_P
    size = images.shape[-2:]
    logits = F.interpolate(output.one_shot.class_logits().float(), size=size, mode="bilinear")
    panels = [
        overlay(images[image_P[first]], episode.shown_masks()[first, 0]),
        overlay(images[image_P], (logits[:, 0] > 0)),
        overlay(images[image_P], episode.masks()[:, 0]),
    ]
    rows = torch.cat(panels, dim=3)
    return rows[:: max(1, len(rows) // 8)][:8]
