"""Stage 1 training loop: resumable bit for bit, on a step budget, with TensorBoard."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from vessa_client.console import progress_bar
from vessa_server.matching.template_matcher import TemplateMatcher
from vessa_server.model import checkpoint
from vessa_server.model.preprocess import normalise, overlay, vlm_view
from vessa_server.model.vessa import (
    Conditioned,
    Decoded,
    ImageFeatures,
    TemplateFeatures,
    Vessa,
)
from vessa_server.training.config import TrainingConfig
from vessa_server.training.episodes import Episode, EpisodeDataset
from vessa_server.training.losses import hard_dice, hard_iou, mask_loss, soft_dice_loss

STATE_FILE = "training_state.safetensors"


@dataclasses.dataclass(frozen=True)
class StepOutput:
    """Losses and scores of one step; ``total`` is what is minimised."""

    total: Tensor
    scalars: dict[str, float]
    one_shot: Decoded
    template_P: Tensor


class Stage1Trainer:
    """Trains :class:`Vessa` on episodes and keeps an exponential average of its weights."""

    def __init__(self, model: Vessa, dataset: EpisodeDataset, out: Path) -> None:
        self.model = model
        self.dataset = dataset
        self.config: TrainingConfig = dataset.config
        self.out = out
        self.step = 0
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(model, self.config.weight_decay), lr=self.config.learning_rate
        )
        self.average = {n: p.detach().clone() for n, p in self._trained()}

    def run(self) -> None:
        """Train up to ``config.steps``, resuming from ``out`` where a state is there."""
        self.out.mkdir(parents=True, exist_ok=True)
        self.resume()
        loader = DataLoader(
            self.dataset,
            batch_size=None,
            sampler=range(self.step, self.config.steps),
            num_workers=1,
            prefetch_factor=4,
        )
        writer = SummaryWriter(str(self.out / "tensorboard"))
        writer.add_text("config", json.dumps(dataclasses.asdict(self.config), indent=2))
        last_saved, recent = time.monotonic(), dict[str, list[float]]()
        with progress_bar() as progress:
            task = progress.add_task(
                "Stage 1", total=self.config.steps, completed=self.step, note=""
            )
            for episode in loader:
                output = self.train_step(episode)
                for name, value in output.scalars.items():
                    recent.setdefault(name, []).append(value)
                if self.step % self.config.log_every == 0:
                    means = {name: sum(v) / len(v) for name, v in recent.items()}
                    recent.clear()
                    self._log(writer, means)
                    note = f"Dice {means['dice/one_shot']:.3f} loss {means['loss/total']:.3f}"
                    progress.update(task, note=note)
                if self.step % self.config.image_every == 0:
                    writer.add_images("episode", _picture(episode, output), self.step)
                progress.advance(task)
                if time.monotonic() - last_saved > 60 * self.config.checkpoint_minutes:
                    self.save()
                    last_saved = time.monotonic()
        self.save()
        writer.close()

    def train_step(self, episode: Episode) -> StepOutput:
        """One optimiser update."""
        self.model.train()
        rate = learning_rate(self.step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)
        output = forward(self.model, episode, self.config)
        if not bool(torch.isfinite(output.total)):
            raise FloatingPointError(f"loss at step {self.step} is not finite: {output.scalars}")
        self.optimizer.zero_grad(set_to_none=True)
        output.total.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        self.step += 1
        # A short average at first, so that it is not held back by the random start.
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, parameter in self._trained():
                self.average[name].lerp_(parameter, 1 - decay)
        return output

    def save(self) -> None:
        """Write the training state and the averaged weights, atomically."""
        tensors = {f"model.{n}": t.detach() for n, t in self.model.state_dict().items()}
        tensors |= {f"average.{n}": t for n, t in self.average.items()}
        names = [n for n, _ in self.model.named_parameters()]
        state = self.optimizer.state_dict()["state"]
        ordered = [p for group in self.optimizer.param_groups for p in group["params"]]
        by_parameter = {id(p): n for n, p in zip(names, self.model.parameters(), strict=True)}
        for index, parameter in enumerate(ordered):
            for key, value in state.get(index, {}).items():
                tensors[f"optimizer.{by_parameter[id(parameter)]}.{key}"] = value
        tensors["step"] = torch.tensor(self.step)
        # Tied parameters share memory, which safetensors refuses: each gets its own copy.
        copies = {n: t.contiguous().clone() for n, t in tensors.items()}
        checkpoint.write_safetensors(self.out / STATE_FILE, copies, {})
        self._save_average()

    def use_average(self) -> None:
        """Put the averaged weights into the model; training does not go on after that."""
        with torch.no_grad():
            for name, parameter in self._trained():
                parameter.copy_(self.average[name])

    def _save_average(self) -> None:
        current = {n: p.detach().clone() for n, p in self._trained()}
        self.use_average()
        checkpoint.save(self.model, self.out)
        with torch.no_grad():
            for name, parameter in self._trained():
                parameter.copy_(current[name])

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]

    def resume(self) -> bool:
        """Load the state in ``out``, if there is one."""
        file = self.out / STATE_FILE
        if not file.is_file():
            return False
        tensors = load_file(file)
        self.step = int(tensors["step"])
        ordered = [p for group in self.optimizer.param_groups for p in group["params"]]
        names = {id(p): n for n, p in self.model.named_parameters()}
        self.model.load_state_dict(
            {n[len("model.") :]: t for n, t in tensors.items() if n.startswith("model.")}
        )
        self.average = {name: tensors[f"average.{name}"].clone() for name in self.average}
        state = self.optimizer.state_dict()
        for index, parameter in enumerate(ordered):
            prefix = f"optimizer.{names[id(parameter)]}."
            values = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
            if values:
                state["state"][index] = values
        self.optimizer.load_state_dict(state)
        return True

    def _log(self, writer: SummaryWriter, means: dict[str, float]) -> None:
        for name, value in means.items():
            writer.add_scalar(name, value, self.step)
        writer.add_scalar("learning_rate", self.optimizer.param_groups[0]["lr"], self.step)
        with (self.out / "log.jsonl").open("a") as stream:
            stream.write(json.dumps({"step": self.step, **means}) + "\n")


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then a cosine down to 2 % of the peak."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def forward(model: Vessa, episode: Episode, config: TrainingConfig) -> StepOutput:
    """All five steps on an episode, decoded once without and once with student masks."""
    features = model.encode_image(
        normalise(episode.image_N3HW, model.config),
        vlm_view(episode.image_N3HW, model.config.vlm.image_size),
    )
    image_P = episode.image_P
    template_PK = choose_templates(features, episode, config)
    template_R = template_PK.flatten()
    pair_R = torch.arange(image_P.shape[0]).repeat_interleave(template_PK.shape[1])
    flat = dataclasses.replace(episode, image_P=image_P[pair_R], class_P=episode.class_P[pair_R])
    asked_R, other_R = flat.template_masks(template_R)
    templates = model.encode_template(features.select(template_R), asked_R)
    conditioned, language = _condition(
        model, episode, features, template_PK, asked_R, other_R, templates
    )
    target = F.adaptive_avg_pool2d(episode.masks(), model.config.image_size // 2)
    target = (target >= 0.5).float()
    one_shot = model.decode(features, image_P, conditioned, None, None)
    every = torch.ones_like(image_P, dtype=torch.bool)
    refined = model.decode(features, image_P, conditioned, episode.student_P1HW, every)
    losses: dict[str, Tensor] = {"language": config.language_weight * language}
    for name, decoded in (("one_shot", one_shot), ("refined", refined)):
        losses |= {f"{name}/{k}": v for k, v in _decoder_losses(decoded, target, config).items()}
    prior = conditioned.prior_P1HW
    prior_target = F.adaptive_avg_pool2d(episode.masks(), prior.shape[-1])
    cross_entropy = F.binary_cross_entropy(prior.clamp(1e-4, 1 - 1e-4), prior_target)
    overlap = soft_dice_loss(prior, prior_target).mean()
    losses["prior"] = config.prior_weight * (cross_entropy + overlap)
    total = torch.stack(list(losses.values())).sum()
    scalars = {f"loss/{name}": float(value.detach()) for name, value in losses.items()}
    scalars |= _scores(one_shot, refined, episode, prior, target)
    return StepOutput(total, scalars | {"loss/total": float(total.detach())}, one_shot, template_R)


def choose_templates(features: ImageFeatures, episode: Episode, config: TrainingConfig) -> Tensor:
    """(P, K) templates: the best retrieved ones, or random candidates."""
    scores = torch.rand(episode.candidates_PN.shape)
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
                scores[rows] = similarity[episode.image_P[rows]]
    scores = scores.masked_fill(~episode.candidates_PN, -torch.inf)
    count = int(torch.randint(1, config.max_templates + 1, ()))
    best_PK = scores.topk(count, dim=1)
    # A pair with fewer candidates than templates sees its best one again.
    return torch.where(best_PK.values > -torch.inf, best_PK.indices, best_PK.indices[:, :1])


def _condition(
    model: Vessa,
    episode: Episode,
    features: ImageFeatures,
    template_PK: Tensor,
    asked_R: Tensor,
    other_R: Tensor,
    templates: TemplateFeatures,
) -> tuple[Conditioned, Tensor]:
    image_P = episode.image_P
    # The VLM reads the best template only.
    first = torch.arange(image_P.shape[0]) * template_PK.shape[1]
    tinted = overlay(episode.image_N3HW[template_PK[:, 0]], asked_R[first], other_R[first])
    ids, mask = model.reasoner.tokenize(episode.prompts)
    view = model.reasoner.see(vlm_view(tinted, model.config.vlm.image_size))
    prefix = model.reasoner.prefix(ids, mask, view)
    answers = model.reasoner.answer_ids(episode.answers).to(ids.device)
    seg, language = model.reason(prefix, features, image_P, answers)
    matched = model.match(features, image_P, templates)
    conditioned = Conditioned(
        top_PDHW=model.remember(features, image_P, templates),
        prior_P1HW=matched.prior_P1HW,
        points_PN2=matched.points_PN2,
        labels_PN=matched.labels_PN,
        seg_P1D=seg,
    )
    return conditioned, language


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
    one_shot: Decoded, refined: Decoded, episode: Episode, prior: Tensor, target: Tensor
) -> dict[str, float]:
    size = target.shape[-2:]

    def dice(logits: Tensor) -> float:
        return float(hard_dice(F.interpolate(logits, size=size, mode="bilinear"), target).mean())

    return {
        "dice/one_shot": dice(one_shot.class_logits()),
        "dice/refined": dice(refined.class_logits()),
        "dice/student": dice(episode.student_P1HW - 0.5),
        "dice/prior": dice(prior - 0.5),
    }


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay on matrices only."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2]
    vectors = [p for p in trained if p.ndim < 2]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


@torch.no_grad()
def _picture(episode: Episode, output: StepOutput) -> Tensor:
    """Rows of template with mask, image with prediction, image with ground truth."""
    images = episode.image_N3HW
    first = output.template_P[:: output.template_P.shape[0] // episode.image_P.shape[0]]
    asked, other = episode.template_masks(first)
    nothing = torch.zeros_like(asked)
    logits = F.interpolate(output.one_shot.class_logits(), size=asked.shape[-2:], mode="bilinear")
    query = images[episode.image_P]
    panels = [
        overlay(images[first], asked, other),
        overlay(query, (logits > 0).float(), nothing),
        overlay(query, episode.masks(), nothing),
    ]
    return torch.cat(panels, dim=3)[:8]
