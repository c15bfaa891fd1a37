"""The training loop, of UniMatch V2 with VESSA and of the other methods.

A batch, its views and its dropout depend on the seed and the batch's number only, so a run that
is killed and resumed ends with the same weights, bit for bit, and it does not matter which
process has which batch.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import structlog
import torch
import yaml
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ssl_trainer import methods, models, schedule
from ssl_trainer.assistant import answered, connection
from ssl_trainer.assistant.assistant import PseudoLabel
from ssl_trainer.assistant.pipeline import Answers, Pipeline
from ssl_trainer.config import AXES, TrainConfig, to_dict
from ssl_trainer.data import batches, cases
from ssl_trainer.data.frame import Regions
from ssl_trainer.data.slices import Slice, read_slices
from ssl_trainer.data.store import SliceStore
from ssl_trainer.evaluation.predictor import Predictor, turned_by_quarters, turns
from ssl_trainer.evaluation.volumes import Quarters
from ssl_trainer.methods.losses import Scalars
from ssl_trainer.models import weights
from ssl_trainer.regions import run as regions
from ssl_trainer.regions.locator import Locator
from ssl_trainer.training import resuming, state
from ssl_trainer.training.optimizer import build_optimizer, scale_rates
from ssl_trainer.training.validation import shared_dice
from vessa_common.processes import BufferMean, Processes, own_device, postponed
from vessa_common.training_log import mend

LOG_EVERY = 10
log = structlog.get_logger(__name__)
OnStep = Callable[[int, dict[str, float]], None]
Checkpoint = Literal["best", "last"]


class Trainer:
    """Trains a student and its teacher by a method; with VESSA where a server is named.

    An update sees ``accumulate`` batches in each process; all validate, and the first one logs
    what it saw itself, and writes the files.
    """

    def __init__(self, config: TrainConfig, out: Path, processes: Processes | None = None) -> None:
        """Read the data and build the models.

        Raises:
            ConfigError: the data do not fit the configuration.
            FileError: an image or label file cannot be used.
        """
        self.processes = processes or Processes()
        split = cases.find(config.data)
        cases.check_unlabelled(split, config)
        data = cases.sliced(config.data, split)
        if self.processes.first and data.axis is not None and config.data.axis is None:
            log.info("data.axis", axis=data.axis, name=AXES[data.axis], of="most labelled volumes")
        self.split = split.read_as(data)
        if not config.learns_unlabelled:
            self.split = replace(self.split, unlabelled=())
        student = models.shaped(config.student)
        config = replace(config, data=data, learning_rate=config.rate, student=student)
        self.config, self.out = config, out
        count = len(config.data.classes)
        self.labelled = read_slices(self.split.labelled, count, labelled=True)
        self.unlabelled = read_slices(
            self.split.unlabelled,
            count,
            labelled=config.data.watch_quality,
            sample=config.assistant.volume_slices,
        )
        self.labelled_sampler = batches.SliceSampler(
            len(self.labelled), config.labelled_batch, config.seed
        )
        self.unlabelled_sampler = (
            batches.SliceSampler(len(self.unlabelled), config.unlabelled_batch, config.seed + 1)
            if self.unlabelled
            else None
        )
        torch.manual_seed(config.seed)
        self.method = methods.build(config, self.processes)
        self.student, self.teacher = self.method.student, self.method.teacher
        self.optimizer = build_optimizer(self.method.students, config)
        self.pipeline = (
            Pipeline(config, self.unlabelled_sampler, self.processes, self.teacher.model)
            if config.assistant.server and self.unlabelled_sampler
            else None
        )
        self.regions: Regions = {}
        self.locator: Locator | None = None
        self.step, self.best = 0, -1.0
        # The first update whose loss was not finite; -1 for none.
        self._bad = torch.full((), -1, device=self.processes.device)

    def run(
        self, on_step: OnStep = lambda step, scalars: None, stage: regions.Stage = regions.no_stage
    ) -> None:
        """Train to the last step, resuming from ``out``; writes state, best student, logs.

        Args:
            on_step: called after each update with what is logged of it; on a GPU, which would be
                waited for, losses are there where they are logged.
            stage: told what is done before the first update.

        Raises:
            AssistantError: VESSA cannot help. The state is written before that, but for other
                processes' sake.
            FloatingPointError: a loss is not finite. No state is written after that.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        self.prepare(stage)
        writer = self._writer() if self.processes.first else None
        self.processes.meet()
        try:
            self._ask_ahead(self.step)
            while self.step < self.config.steps:
                scalars = self.train_step()
                if writer is not None:
                    self._log(writer, scalars)
                    on_step(self.step, scalars)
        finally:
            if self.pipeline is not None:
                self.pipeline.close()
            if writer is not None:
                writer.close()

    def prepare(self, stage: regions.Stage = regions.no_stage) -> None:
        """Resume, and find the regions of interest, where the run has some."""
        modules = (self.method.networks(), self.optimizer)
        world = self.processes.world
        saved = state.load_state(self.out, self.config, *modules, self._cases(), world)
        if saved is not None:
            self.step, self.best = saved.progress.step, saved.progress.best
            if self.processes.first:
                resuming.announce(self.step, saved.config, to_dict(self.config))
        asked = schedule.assisted(self.config.steps, self.config.assistant)
        if self.pipeline is not None and (saved is None or self.step < asked):
            connection.check(self.config.assistant, self.config.data.classes)
        if self.config.regions:
            self._find_regions(stage, begins=saved is None)
        if self.pipeline is not None:
            self.pipeline.store = self._unlabelled_store
            if saved is not None:  # ask again about what was under way
                if self.processes.first:
                    self.pipeline.assistant.counts = saved.progress.window
                self.pipeline.restore(saved.prompts, self.step, saved.config["steps"])

    def _find_regions(self, stage: regions.Stage, *, begins: bool) -> None:
        """Those of the run; where it begins, whatever another one left in its folder."""
        if self.processes.first and (begins or not (self.out / regions.REGIONS_FILE).is_file()):
            assistant = None if self.pipeline is None else self.pipeline.assistant
            slices = self.labelled, self.unlabelled
            device = self.processes.device
            regions.find_all(self.config, *slices, assistant, self.out, stage, device)
        self.processes.meet()
        self.regions = regions.load_regions(self.out)
        self.locator = regions.load_locator(self.out, self.processes.device)

    # As they are sampled, once regions are known.
    @cached_property
    def _labelled_store(self) -> SliceStore:
        return self._stored(self.labelled, labelled=True)

    @cached_property
    def _unlabelled_store(self) -> SliceStore:
        return self._stored(self.unlabelled)

    def _stored(self, slices: list[Slice], *, labelled: bool = False) -> SliceStore:
        size, device = self.config.data.size, self.processes.device
        return SliceStore(slices, size, self.regions, device, labelled=labelled)

    def train_step(self) -> dict[str, float]:
        """One update; validates and saves where the configuration says so.

        Raises:
            FloatingPointError: the loss of this or an earlier update is not finite. It changed
                nothing, and is looked for where something is read from the device anyway.
        """
        step, config = self.step, self.config
        scale_rates(self.optimizer, schedule.poly(step, config.steps, config.poly_power))
        started = time.perf_counter()
        answers = self._answers(step)
        collected = time.perf_counter()
        self._ask_ahead(step + 1)
        asked = time.perf_counter()
        self.method.students.train()
        self.optimizer.zero_grad(set_to_none=True)
        buffers = BufferMean(self.method.students, config.accumulate * self.processes.world)
        losses: Scalars = {}
        numbers = batches.numbers(step, config, self.processes)
        for number in numbers:
            with nullcontext() if number == numbers[-1] else postponed(self.method.passes):
                losses = self._backward(number, answers.get(number, []))
            buffers.take()
        buffers.settle(self.processes)
        self._bad = self.processes.highest(self._bad)
        # Where this is not 0 the fused optimiser leaves everything as it is.
        self.optimizer.found_inf = (self._bad >= 0).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.teacher.update(step)
        self.step += 1
        scalars = self._read(losses)
        if self.pipeline is not None:
            scalars |= _server_stages(answers)
            scalars |= {"seconds/wait": collected - started, "seconds/ask": asked - collected}
        scalars["seconds/update"] = time.perf_counter() - asked
        if self._validates(self.step):
            scalars |= self.validate()
        if self.pipeline is not None and self._logged(self.step):
            scalars |= answered.log_line(self.pipeline.assistant, self.processes)
        if self._saves(self.step):
            self.save()
        return scalars

    def _backward(self, number: int, answers: list[PseudoLabel | None]) -> Scalars:
        """Gradients of one batch; returns its losses."""
        loss, scalars = self.method.loss(self._batch(number, answers))
        broken = (self._bad < 0) & ~torch.isfinite(loss.detach())
        self._bad = torch.where(broken, self.step, self._bad)
        (loss / self.config.accumulate).backward()
        return scalars | {"loss/total": loss.detach()}

    def _read(self, losses: Scalars) -> dict[str, float]:
        """What is logged of an update, and whether all is well; on a GPU only where it is logged.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        reads = self._logged(self.step) or self._saves(self.step)
        if self.processes.device.type == "cuda" and not reads:
            return {}
        values = {name: float(value) for name, value in losses.items()}
        self._check_finite(f"; losses of step {self.step - 1}: {values}")
        return values

    def _check_finite(self, seen: str = "") -> None:
        """Whether all losses were, as far as this process knows.

        Raises:
            FloatingPointError: one was not.
        """
        if (bad := int(self._bad)) >= 0:
            raise FloatingPointError(
                f"loss at step {bad} is not finite{seen}. What is saved in {self.out} is from "
                "before; go on from there by the same command with a lower rate, --set "
                f"learning_rate={self.config.rate / 2:g}, or with --set precision=fp32"
            )

    def _batch(self, number: int, answers: list[PseudoLabel | None]) -> methods.Batch:
        config = self.config
        rng = np.random.default_rng([config.seed, number, 2])
        rows = self.labelled_sampler.indices(number)
        labelled = batches.labelled_batch(self._labelled_store, rows, config, rng)
        unlabelled = None
        if self.unlabelled_sampler is not None:
            rows = self.unlabelled_sampler.indices(number)
            unlabelled = batches.unlabelled_batch(self._unlabelled_store, rows, config, rng)
        logged = self._logged(self.step + 1)
        return methods.Batch(labelled, unlabelled, answers, self.step, rng, logged)

    def validate(self) -> dict[str, float]:
        """Dice of the teacher on the validation cases; keeps the best teacher."""
        classes = self.config.data.classes
        predictor = Predictor.of(self.teacher.model, self.config.data, self.locator)
        dice_NC = shared_dice(predictor, self.split.val, classes, self.processes)
        validated = len(dice_NC) > 0
        dice = float(dice_NC.mean()) if validated else self.best
        # Without validation cases the last teacher is the best one known.
        if self.processes.first and (dice > self.best or not validated):
            weights.save(self.out / state.BEST_FILE, self.teacher.model, self.config)
        self.best = max(self.best, dice)
        self.processes.meet()
        if not validated:
            return {}
        by_class = zip(classes, dice_NC.mean(axis=0).tolist(), strict=True)
        return {"val/dice": dice} | {f"val/dice/{name}": value for name, value in by_class}

    def save(self) -> None:
        """Write the training state.

        Raises:
            FloatingPointError: a loss was not finite; the state from before stays.
        """
        self._check_finite()
        prompts, window = dict[int, Tensor](), (0, 0)
        if self.pipeline is not None:
            prompts = self.pipeline.gathered()
            window = answered.window(self.pipeline.assistant, self.processes)
        if self.processes.first:
            progress = state.Progress(self.step, self.best, window)
            modules = (self.method.networks(), self.optimizer)
            found = self._cases(), self.processes.world
            state.save_state(self.out, progress, self.config, *modules, prompts, *found)
        self.processes.meet()

    def _cases(self) -> dict[str, str]:
        return resuming.case_lists(self.split, len(self.labelled), len(self.unlabelled))

    def _ask_ahead(self, step: int) -> None:
        if self.pipeline is not None:
            self.pipeline.ask_ahead(step)

    def _answers(self, step: int) -> Answers:
        """Those for the batches of an update; where they are missed the run stops before it."""
        if self.pipeline is None:
            return {}
        try:
            return self.pipeline.collect(step)
        except connection.AssistantError:
            if self.processes.world == 1:  # others may be elsewhere
                self.save()
            raise

    def _writer(self) -> SummaryWriter:
        text = yaml.safe_dump(to_dict(self.config))
        (self.out / "config.yaml").write_text(text)
        mend(self.out / "log.jsonl")
        writer = SummaryWriter(str(self.out / "tensorboard"), purge_step=self.step)
        writer.add_text("config", f"```\n{text}\n```")
        return writer

    def _validates(self, step: int) -> bool:
        return step % self.config.validate_every == 0 or step == self.config.steps

    def _saves(self, step: int) -> bool:
        return step % self.config.checkpoint_every == 0 or step == self.config.steps

    def _logged(self, step: int) -> bool:
        return step % LOG_EVERY == 0 or self._validates(step)

    def _log(self, writer: SummaryWriter, scalars: dict[str, float]) -> None:
        if self._logged(self.step):
            for name, value in scalars.items():
                writer.add_scalar(name, value, self.step)
            with (self.out / "log.jsonl").open("a") as stream:
                stream.write(json.dumps({"step": self.step, **scalars}) + "\n")


def _server_stages(answers: dict[int, list[PseudoLabel | None]]) -> dict[str, float]:
    """Seconds of the server's stages for the batches of an update."""
    total: Counter[str] = Counter()
    for batch in answers.values():
        for answer in batch:
            total.update(answer.stage_ms if answer else {})
    return {f"seconds/server/{stage}": ms / 1000 for stage, ms in total.items()}


def load_student(folder: Path, config: TrainConfig, checkpoint: Checkpoint = "best") -> Predictor:
    """A student of a run, with several views of each slice and all components that it finds.

    On a GPU where there is one.

    Args:
        folder: of the run.
        config: of the run.
        checkpoint: the teacher that was best on validation cases, or the last one.

    Raises:
        WeightsError: missing or damaged.
    """
    student = models.to_fill(config.student, len(config.data.classes))
    if checkpoint == "best":
        weights.load(folder / state.BEST_FILE, student)
    else:
        weights.load_teacher(folder / state.STATE_FILE, student)
    locator = regions.load_locator(folder, own_device()) if config.regions else None
    found = Predictor.of(student.to(own_device()).eval(), config.data, locator)
    quarters: Quarters = "average" if turned_by_quarters(config) else "none"
    return replace(found, turns=turns(config), quarters=quarters)
