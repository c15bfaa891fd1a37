"""UniMatch V2 with VESSA: L = L_x + λ_u L_u + λ_v(t) L_v.

Batches, views and dropout of a step depend on the seed and the step only, so a run that is
killed and resumed ends with the same weights, bit for bit.

Axes: B batch, C classes with background, H W space.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from ssl_trainer import models
from ssl_trainer.assistant.assistant import Assistant, PseudoLabel
from ssl_trainer.config import TrainConfig, to_dict
from ssl_trainer.data import batches, cases, frame
from ssl_trainer.evaluation.evaluate import evaluate
from ssl_trainer.evaluation.metrics import mean_dice
from ssl_trainer.models import predict_probabilities
from ssl_trainer.unimatch import losses, quality, schedule, state
from ssl_trainer.unimatch.dropout import complementary_masks
from ssl_trainer.unimatch.ema import EmaTeacher
from ssl_trainer.unimatch.views import CutMix, jitter

LOG_EVERY = 10
OnStep = Callable[[int, dict[str, float]], None]


class Target(NamedTuple):
    """What a strong view should show: labels and a weight for each pixel."""

    labels_BHW: Tensor
    weight_BHW: Tensor

    def mix(self, cutmix: CutMix) -> Target:
        """The target of the mixed view."""
        return Target(cutmix.mix(self.labels_BHW), cutmix.mix(self.weight_BHW))


class UniMatchTrainer:
    """Trains a student and its teacher; with an assistant where the configuration names one."""

    def __init__(self, config: TrainConfig, out: Path) -> None:
        """Read the data and build the models.

        Raises:
            ConfigError: the data do not fit the configuration.
            FileError: an image or label file cannot be used.
        """
        self.config, self.out = config, out
        self.split = cases.find(config.data)
        count = len(config.data.classes)
        self.labelled = cases.read_slices(self.split.labelled, count, labelled=True)
        self.unlabelled = cases.read_slices(
            self.split.unlabelled, count, labelled=config.data.watch_quality
        )
        self.labelled_sampler = batches.SliceSampler(
            len(self.labelled), config.labelled_batch, config.seed
        )
        self.unlabelled_sampler = (
            batches.SliceSampler(len(self.unlabelled), config.unlabelled_batch, config.seed + 1)
            if self.unlabelled and (config.unimatch.weight or config.assistant.server)
            else None
        )
        torch.manual_seed(config.seed)
        self.student = models.build(config.student, count)
        self.teacher = EmaTeacher(self.student, config.unimatch.ema_decay)
        # AdamW as UniMatch V2. With SGD a student of this size falls for the background, of
        # which the teacher is sure first.
        self.optimizer = torch.optim.AdamW(
            self.student.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.assistant = (
            Assistant(config.assistant, config.data.classes)
            if config.assistant.server and self.unlabelled_sampler
            else None
        )
        self.step, self.best = 0, -1.0
        self._pending: list[Tensor] | None = None

    def run(self, on_step: OnStep = lambda step, scalars: None) -> None:
        """Train to the last step, resuming from ``out``; writes state, best student, logs."""
        self.out.mkdir(parents=True, exist_ok=True)
        self.resume()
        (self.out / "config.yaml").write_text(yaml.safe_dump(to_dict(self.config)))
        writer = SummaryWriter(str(self.out / "tensorboard"), purge_step=self.step)
        writer.add_text("config", f"```\n{yaml.safe_dump(to_dict(self.config))}\n```")
        try:
            self._ask(self.step, self._pending)
            while self.step < self.config.steps:
                scalars = self.train_step()
                self._log(writer, scalars)
                on_step(self.step, scalars)
        finally:
            if self.assistant is not None:
                self.assistant.close()
            writer.close()

    def train_step(self) -> dict[str, float]:
        """One update; validates and saves where the configuration says so."""
        step, config = self.step, self.config
        rng = np.random.default_rng([config.seed, step, 2])
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * schedule.poly(
                step, config.steps, config.poly_power
            )
        answers = self._collect(step)
        if self.assistant is not None and step + 1 < config.steps:
            self._pending = self._student_masks(step + 1)
            self._ask(step + 1, self._pending)
        self.student.train()
        labelled = batches.labelled_batch(
            self.labelled, self.labelled_sampler.indices(step), config, rng
        )
        loss = losses.supervised_loss(self.student(labelled.image_B1HW), labelled.labels_BHW)
        scalars = {"loss/supervised": float(loss.detach())}
        if self.unlabelled_sampler is not None:
            indices = self.unlabelled_sampler.indices(step)
            unlabelled = batches.unlabelled_batch(self.unlabelled, indices, config, rng)
            extra, more = self._unlabelled_loss(unlabelled, answers, rng)
            loss = loss + extra
            scalars |= more
        if not bool(torch.isfinite(loss)):
            raise FloatingPointError(f"loss at step {step} is not finite: {scalars}")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.teacher.update(self.student, step)
        self.step += 1
        if self.step % config.validate_every == 0 or self.step == config.steps:
            scalars |= self.validate()
        if self.step % config.checkpoint_every == 0 or self.step == config.steps:
            self.save()
        return scalars | {"loss/total": float(loss.detach())}

    def validate(self) -> dict[str, float]:
        """Dice of the teacher on the validation cases; keeps the best teacher."""
        classes = self.config.data.classes
        scores = evaluate(
            self.teacher.model, self.split.val, classes, self.config.data.size, distances=False
        )
        if not scores:  # no validation cases: the last teacher is the best one known
            state.save_student(self.out / state.BEST_FILE, self.teacher.model, self.config)
            return {}
        dice = mean_dice(scores)
        if dice > self.best:
            self.best = dice
            state.save_student(self.out / state.BEST_FILE, self.teacher.model, self.config)
        by_class = np.mean([s.dice for s in scores], axis=0)
        named = {f"val/dice/{n}": float(v) for n, v in zip(classes, by_class, strict=True)}
        return {"val/dice": dice, **named}

    def save(self) -> None:
        """Write the training state."""
        progress = state.Progress(self.step, self.best)
        state.save_state(
            self.out,
            progress,
            self.config,
            self.student,
            self.teacher.model,
            self.optimizer,
            self._pending,
        )

    def resume(self) -> bool:
        """Load the training state, where there is one."""
        loaded = state.load_state(
            self.out, self.config, self.student, self.teacher.model, self.optimizer
        )
        if loaded is None:
            return False
        progress, self._pending = loaded
        self.step, self.best = progress.step, progress.best
        return True

    def _unlabelled_loss(
        self,
        batch: batches.UnlabelledBatch,
        answers: list[PseudoLabel | None],
        rng: np.random.Generator,
    ) -> tuple[Tensor, dict[str, float]]:
        config = self.config
        size, count = config.data.size, len(batch.slices)
        teacher = predict_probabilities(self.teacher.model, batch.image_B1HW)
        confidence, labels = teacher.max(dim=1)
        sure = losses.confident(confidence, config.unimatch.confidence_threshold)
        from_teacher = Target(labels, sure)
        from_vessa = self._assistant_target(batch, answers)
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        masks = complementary_masks(
            count, self.student.encoder_channels, config.unimatch.dropout_probability, generator
        )
        mixes = [
            CutMix.draw(count, size, config.unimatch.cutmix_probability, rng) for _ in range(2)
        ]
        views = torch.cat([mix.mix(jitter(batch.image_B1HW, rng)) for mix in mixes])
        both = [torch.cat(pair) for pair in zip(*masks, strict=True)]
        logits = self.student(views, both).chunk(2)
        loss = losses.UNLABELLED[config.unimatch.loss]
        consistency = assistance = torch.zeros(())
        for view_logits, mix in zip(logits, mixes, strict=True):
            consistency = consistency + loss(view_logits, *from_teacher.mix(mix)) / 2
            if from_vessa is not None:
                assistance = assistance + loss(view_logits, *from_vessa.mix(mix)) / 2
        weight = schedule.assistant_weight(self.step, config.steps, config.assistant)
        total = config.unimatch.weight * consistency
        scalars = {
            "loss/consistency": float(consistency.detach()),
            "teacher/confident": float(sure.mean()),
        }
        if config.data.watch_quality:
            vessa = None if from_vessa is None else from_vessa.labels_BHW
            scalars |= quality.watch(batch, labels, vessa)
        if from_vessa is not None:
            total = total + weight * assistance
            agree = (from_vessa.labels_BHW == labels).float().mean()
            scalars |= {
                "loss/assistant": float(assistance.detach()),
                "assistant/weight": weight,
                "assistant/agreement": float(agree),
                "assistant/answered": sum(a is not None for a in answers) / len(answers),
            }
        return total, scalars

    def _assistant_target(
        self, batch: batches.UnlabelledBatch, answers: list[PseudoLabel | None]
    ) -> Target | None:
        """VESSA's answers, warped into the views of the batch."""
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
            labels.append(batch.warp(index, native, mode="nearest")[0].long())
            confidence = torch.tensor(answer.confidence).float()[None] / 255
            warped = batch.warp(index, confidence, mode="bilinear")[0]
            if self.config.assistant.confidence_weighting:
                weights.append(losses.pixel_weight(warped) * answer.predicted_iou)
            else:
                weights.append((warped > 0).float())  # 0 outside of the slice
        return Target(torch.stack(labels), torch.stack(weights))

    def _student_masks(self, step: int) -> list[Tensor] | None:
        """Label maps of the student for the slices of ``step``, in their native frames."""
        config = self.config
        assert self.unlabelled_sampler is not None
        if not schedule.feedback(step, config.steps, config.assistant):
            return None
        slices = [self.unlabelled[i] for i in self.unlabelled_sampler.indices(step)]
        views = torch.stack([batches.canonical(s, config.data.size) for s in slices])
        probabilities = predict_probabilities(self.student, views)
        return [
            frame.restore(maps, item.image.shape).argmax(dim=0).to(torch.uint8)
            for maps, item in zip(probabilities, slices, strict=True)
        ]

    def _ask(self, step: int, masks: list[Tensor] | None) -> None:
        if self.assistant is None or self.unlabelled_sampler is None or step >= self.config.steps:
            return
        slices = [self.unlabelled[i] for i in self.unlabelled_sampler.indices(step)]
        self.assistant.ask(step, slices, None if masks is None else [m.numpy() for m in masks])

    def _collect(self, step: int) -> list[PseudoLabel | None]:
        if self.assistant is None:
            return [None] * self.config.unlabelled_batch
        return self.assistant.collect(step)

    def _log(self, writer: SummaryWriter, scalars: dict[str, float]) -> None:
        if self.step % LOG_EVERY == 0 or any(name.startswith("val/") for name in scalars):
            for name, value in scalars.items():
                writer.add_scalar(name, value, self.step)
            with (self.out / "log.jsonl").open("a") as stream:
                stream.write(json.dumps({"step": self.step, **scalars}) + "\n")


def load_best(folder: Path, config: TrainConfig) -> nn.Module:
    """The best student of a run, for evaluation and prediction.

    Raises:
        StateError: missing or damaged.
    """
    student = models.build(config.student, len(config.data.classes))
    state.load_student(folder / state.BEST_FILE, student)
    return student.eval()
