"""UniMatch V2 with VESSA: the training loop.

A batch, its views and its dropout depend on the seed and the batch's number only, so a run that
is killed and resumed ends with the same weights, bit for bit, and it does not matter which
process has which batch.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import structlog
import torch
import yaml
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ssl_trainer import models
from ssl_trainer.assistant import connection
from ssl_trainer.assistant.assistant import PseudoLabel
from ssl_trainer.assistant.connection import AssistantError
from ssl_trainer.assistant.feedback import Feedback
from ssl_trainer.assistant.trust import Trust
from ssl_trainer.config import AXES, DataConfig, TrainConfig, to_dict
from ssl_trainer.data import batches, cases
from ssl_trainer.evaluation.predictor import Predictor, turns
from ssl_trainer.unimatch import answered, judge, resuming, schedule, state
from ssl_trainer.unimatch.ema import EmaTeacher
from ssl_trainer.unimatch.objective import StudentPasses, batch_loss, strong_views
from ssl_trainer.unimatch.optimizer import build_optimizer, scale_rates
from ssl_trainer.unimatch.prompter import Prompter, known
from ssl_trainer.unimatch.validation import shared_dice
from vessa_common.processes import BufferMean, Processes, own_device, postponed

LOG_EVERY = 10
log = structlog.get_logger(__name__)
OnStep = Callable[[int, dict[str, float]], None]


class UniMatchTrainer:
    """Trains a student and its teacher; with VESSA where the configuration names a server.

    An update sees ``accumulate`` batches in each process; all validate, and the first one logs
    what it saw itself, compares VESSA's labels with the teacher's, and writes the files.
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
        data = self._sliced(config.data, split)
        self.split = split.read_as(data)
        patients = len({case.patient for case in self.split.labelled})
        validated = any(case.labels is not None for case in self.split.val)
        assistant = config.assistant.settled(patients, validated=validated)
        config = replace(config, assistant=assistant, data=data, learning_rate=config.rate)
        self.config, self.out = config, out
        count = len(config.data.classes)
        self.labelled = cases.read_slices(self.split.labelled, count, labelled=True)
        self.unlabelled = cases.read_slices(
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
            if self.unlabelled and (config.unimatch.weight or config.assistant.server)
            else None
        )
        torch.manual_seed(config.seed)
        self.student = models.build(config.student, count).to(self.processes.device)
        self.teacher = EmaTeacher(self.student, config.unimatch.ema_decay)
        self.passes = self.processes.wrap(StudentPasses(self.student, config.precision))
        self.optimizer = build_optimizer(self.student, config)
        self.feedback = (
            Feedback(
                config,
                self.unlabelled,
                self.unlabelled_sampler,
                config.steps * self.processes.world * config.accumulate,
            )
            if config.assistant.server and self.unlabelled_sampler
            else None
        )
        # Without a number the weight of VESSA's labels depends on how good they are.
        self.judge = (
            judge.Judge(config, self.split.val, self.feedback)
            if self.feedback and config.assistant.weight_end == "auto" and self.processes.first
            else None
        )
        self.step, self.best, self.trust = 0, -1.0, Trust()
        # What VESSA was told of the student's view, by update, for the requests under way.
        self._told: dict[int, Future[Tensor] | None] = {}
        self.prompter = Prompter(self.teacher.model, config) if self.feedback else None

    def _sliced(self, data: DataConfig, split: cases.Split) -> DataConfig:
        """With channel and axis: all volumes of a run are read alike, however each was acquired."""
        data = replace(data, channel=split.labelled[0].channel)
        if data.axis is not None:
            return data
        axis = cases.common_axis(case.image for case in split.labelled)
        if axis is None:
            return data
        if self.processes.first:
            log.info("data.axis", axis=axis, name=AXES[axis], of="most labelled volumes")
        return replace(data, axis=axis)

    def run(self, on_step: OnStep = lambda step, scalars: None) -> None:
        """Train to the last step, resuming from ``out``; writes state, best student, logs.

        Raises:
            AssistantError: VESSA cannot help. The state is written before that, but for other
                processes' sake, and where it is noticed in a comparison: then the last one counts.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        self.resume()
        self._check_server()
        writer = self._writer() if self.processes.first else None
        self.processes.meet()
        try:
            for step, told in self._told.items():
                self._ask(step, told)
            self._ask_ahead(self.step)
            while self.step < self.config.steps:
                scalars = self.train_step()
                if writer is not None:
                    self._log(writer, scalars)
                    on_step(self.step, scalars)
        finally:
            if self.feedback is not None:
                self.feedback.close()
            if self.prompter is not None:
                self.prompter.close()
            if writer is not None:
                writer.close()

    def train_step(self) -> dict[str, float]:
        """One update; validates and saves where the configuration says so."""
        step, config = self.step, self.config
        scale_rates(self.optimizer, schedule.poly(step, config.steps, config.poly_power))
        numbers = self._numbers(step)
        started = time.perf_counter()
        answers = self._answers(numbers)
        collected = time.perf_counter()
        self._told.pop(step, None)
        self._ask_ahead(step + 1)
        if self.judge is not None:
            self.judge.look_ahead(step)
        asked = time.perf_counter()
        self.student.train()
        self.optimizer.zero_grad(set_to_none=True)
        buffers = BufferMean(self.student)
        scalars: dict[str, float] = {}
        for number in numbers:
            with nullcontext() if number == numbers[-1] else postponed(self.passes):
                scalars = self._backward(number, answers[number])
            buffers.take()
        buffers.settle(self.processes)
        self.optimizer.step()
        self.teacher.update(self.student, step)
        self.step += 1
        if self.feedback is not None:
            scalars |= _server_stages(answers)
            scalars |= {"seconds/wait": collected - started, "seconds/ask": asked - collected}
        scalars["seconds/update"] = time.perf_counter() - asked
        if self._validates(self.step):
            scalars |= self.validate() | self._compare()
        if self.feedback is not None and self._logged(self.step):
            scalars |= answered.log_line(self.feedback.assistant, self.processes)
        if self.step % config.checkpoint_every == 0 or self.step == config.steps:
            self.save()
        return scalars

    def _backward(self, number: int, answers: list[PseudoLabel | None]) -> dict[str, float]:
        """Gradients of one batch; returns its losses."""
        config = self.config
        rng = np.random.default_rng([config.seed, number, 2])
        labelled = batches.labelled_batch(
            self.labelled, self.labelled_sampler.indices(number), config, rng
        )
        views, scalars = None, dict[str, float]()
        weight = self._assistant_weight(self.step)
        if self.unlabelled_sampler is not None:
            indices = self.unlabelled_sampler.indices(number)
            unlabelled = batches.unlabelled_batch(self.unlabelled, indices, config, rng)
            channels = self.student.encoder_channels
            views, scalars = strong_views(
                unlabelled,
                answers,
                self.teacher.model,
                channels,
                config,
                self.step,
                rng,
                assistant_weight=weight,
                logged=self._logged(self.step + 1),
            )
        loss, parts = batch_loss(self.passes, labelled, views, config, self.step, weight)
        scalars |= parts | {"loss/total": float(loss.detach())}
        if not bool(torch.isfinite(loss)):
            raise FloatingPointError(f"loss at step {self.step} is not finite: {scalars}")
        (loss / config.accumulate).backward()
        return scalars

    def validate(self) -> dict[str, float]:
        """Dice of the teacher on the validation cases; keeps the best teacher."""
        classes = self.config.data.classes
        predictor = Predictor.of(self.teacher.model, self.config.data)
        dice_NC = shared_dice(predictor, self.split.val, classes, self.processes)
        validated = len(dice_NC) > 0
        dice = float(dice_NC.mean()) if validated else self.best
        # Without validation cases the last teacher is the best one known.
        if self.processes.first and (dice > self.best or not validated):
            state.save_student(self.out / state.BEST_FILE, self.teacher.model, self.config)
        self.best = max(self.best, dice)
        self.processes.meet()
        if not validated:
            return {}
        by_class = zip(classes, dice_NC.mean(axis=0).tolist(), strict=True)
        return {"val/dice": dice} | {f"val/dice/{name}": value for name, value in by_class}

    def _compare(self) -> dict[str, float]:
        """Compare VESSA's labels with the teacher's, as long as VESSA's weight has not fallen."""
        config = self.config
        if self.feedback is None or config.assistant.weight_end != "auto":
            return {}
        first = judge.FIRST * config.validate_every
        if self.trust.falls_from is not None or not first <= self.step < config.steps:
            return {}
        started, found = time.perf_counter(), None
        if self.judge is not None:
            found = self.judge.compare(self.teacher.model)
        if found is not None:
            self.trust = self.trust.after(self.step, teacher=found[0], vessa=found[1])
        self.processes.meet()
        falls_from = self.processes.agree(self.trust.falls_from or 0)
        self.trust = replace(self.trust, falls_from=falls_from or None)
        if found is None:
            return {}
        names = ("val/labels/teacher", "val/labels/vessa", "seconds/compare")
        return dict(zip(names, (*found, time.perf_counter() - started), strict=True))

    def save(self) -> None:
        """Write the training state."""
        told = {
            step: self.processes.gather(maps.result())
            for step, maps in self._told.items()
            if maps is not None
        }
        window = (0, 0)
        if self.feedback is not None:
            window = answered.window(self.feedback.assistant, self.processes)
        if self.processes.first:
            progress = state.Progress(self.step, self.best, self.trust, self.config.steps, window)
            modules = (self.student, self.teacher.model, self.optimizer)
            state.save_state(self.out, progress, self.config, *modules, told, self._cases())
        self.processes.meet()

    def resume(self) -> bool:
        """Load the training state, where there is one.

        Raises:
            StateError: damaged, or of another configuration, other data or another number of
                processes.
        """
        modules = (self.student, self.teacher.model, self.optimizer)
        loaded = state.load_state(self.out, self.config, *modules, self._cases())
        if loaded is None:
            return False
        progress, told = loaded
        self.step, self.best, self.trust = progress.step, progress.best, progress.trust
        if self.feedback is not None and self.processes.first:
            self.feedback.assistant.counts = progress.window
        own = self.config.accumulate * self.config.unlabelled_batch
        expected = own * self.processes.world
        # Where it was to end before, VESSA was asked about nothing beyond.
        asked = range(self.step, min(self._under_way(self.step).stop, progress.planned))
        self._told = dict.fromkeys(asked)
        if self.processes.first:
            resuming.announce(progress.planned, self.config.steps)
        for step, maps in told.items():
            if len(maps) != expected:
                raise state.StateError(
                    f"{self.out / state.STATE_FILE}: an update saw {len(maps)} unlabelled "
                    f"slices, here {expected}; start as many processes as before"
                )
            self._told[step] = known(maps[self.processes.rank * own :][:own])
        return True

    def _cases(self) -> dict[str, str]:
        return resuming.case_lists(self.split, len(self.labelled), len(self.unlabelled))

    def _numbers(self, step: int) -> range:
        """Batches of this process in update ``step``: as if one process had them all."""
        accumulate = self.config.accumulate
        first = (step * self.processes.world + self.processes.rank) * accumulate
        return range(first, first + accumulate)

    def _predict(self, step: int) -> Future[Tensor] | None:
        """What VESSA is told about the slices of ``step``, where it is time for that."""
        config, feedback = self.config, self._feedback_at(step)
        if feedback is None or not schedule.feedback(step, config.steps, config.assistant):
            return None
        assert self.prompter is not None
        model = {"student": self.student, "teacher": self.teacher.model}
        batch, numbers = config.unlabelled_batch, self._numbers(step)

        def canvases() -> dict[int, Tensor]:
            return {
                index * batch + row: canvas
                for index, number in enumerate(numbers)
                for row, canvas in feedback.canvases(number).items()
            }

        source = model[config.assistant.feedback_from]
        return self.prompter.begin(source, canvases, config.accumulate * batch)

    def _feedback_at(self, step: int) -> Feedback | None:
        """VESSA, where its labels count in an update."""
        return self.feedback if self._assistant_weight(step) else None

    def _assistant_weight(self, step: int) -> float:
        config, falls_from = self.config, self.trust.falls_from
        return schedule.assistant_weight(step, config.steps, config.assistant, falls_from)

    def _under_way(self, step: int) -> range:
        """Updates about which VESSA has been asked when ``step`` begins."""
        return range(step, min(step + self.config.assistant.ahead, self.config.steps))

    def _ask_ahead(self, step: int) -> None:
        """Ask about the updates to come about which VESSA was not asked yet."""
        for coming in self._under_way(step):
            if coming not in self._told:
                self._told[coming] = self._predict(coming)
                self._ask(coming, self._told[coming])

    def _ask(self, step: int, told: Future[Tensor] | None) -> None:
        feedback = self._feedback_at(step)
        if feedback is None:
            return
        batch = self.config.unlabelled_batch
        for index, number in enumerate(self._numbers(step)):
            rows = slice(index * batch, (index + 1) * batch)
            feedback.ask(number, None if told is None else partial(_rows, told, rows))

    def _check_server(self) -> None:
        """See :func:`connection.check`, where VESSA is asked about an update to come."""
        coming = range(self.step, self.config.steps)
        if self.feedback is not None and any(self._assistant_weight(step) for step in coming):
            connection.check(self.config.assistant, self.config.data.classes)

    def _answers(self, numbers: range) -> dict[int, list[PseudoLabel | None]]:
        """Those for the batches of an update; where they are missed the run stops before it."""
        counts = self.feedback.assistant.counts if self.feedback else (0, 0)
        try:
            return {number: self._collect(number) for number in numbers}
        except AssistantError:
            assert self.feedback is not None
            self.feedback.assistant.counts = counts
            if self.processes.world == 1:  # others may be elsewhere
                self.save()
            raise

    def _collect(self, number: int) -> list[PseudoLabel | None]:
        feedback = self._feedback_at(self.step)
        if feedback is None:
            return [None] * self.config.unlabelled_batch
        return feedback.collect(number)

    def _writer(self) -> SummaryWriter:
        text = yaml.safe_dump(to_dict(self.config))
        (self.out / "config.yaml").write_text(text)
        writer = SummaryWriter(str(self.out / "tensorboard"), purge_step=self.step)
        writer.add_text("config", f"```\n{text}\n```")
        return writer

    def _validates(self, step: int) -> bool:
        return step % self.config.validate_every == 0 or step == self.config.steps

    def _logged(self, step: int) -> bool:
        return step % LOG_EVERY == 0 or self._validates(step)

    def _log(self, writer: SummaryWriter, scalars: dict[str, float]) -> None:
        if self._logged(self.step):
            for name, value in scalars.items():
                writer.add_scalar(name, value, self.step)
            with (self.out / "log.jsonl").open("a") as stream:
                stream.write(json.dumps({"step": self.step, **scalars}) + "\n")


def _rows(told: Future[Tensor], rows: slice) -> Tensor:
    return told.result()[rows]


def _server_stages(answers: dict[int, list[PseudoLabel | None]]) -> dict[str, float]:
    """Seconds of the server's stages for the batches of an update."""
    total: Counter[str] = Counter()
    for batch in answers.values():
        for answer in batch:
            total.update(answer.stage_ms if answer else {})
    return {f"seconds/server/{stage}": ms / 1000 for stage, ms in total.items()}


def load_best(folder: Path, config: TrainConfig) -> Predictor:
    """The best student of a run, with several views of each slice and all pieces that it finds.

    On a GPU where there is one.

    Raises:
        StateError: missing or damaged.
    """
    student = models.build(config.student, len(config.data.classes))
    state.load_student(folder / state.BEST_FILE, student)
    best = Predictor.of(student.to(own_device()).eval(), config.data)
    return replace(best, turns=turns(config))
