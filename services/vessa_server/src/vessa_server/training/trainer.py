"""Stage 1 training loop: resumable bit for bit, on one or several processes, with TensorBoard.

Between two lines of the log nothing waits for the device: losses are looked at there, and an
update whose loss is not finite leaves the weights as they were.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.utils import save_image

from vessa_client.console import console
from vessa_common.processes import Processes
from vessa_server.model import checkpoint
from vessa_server.model.precision import autocast
from vessa_server.model.vessa import Vessa
from vessa_server.training.config import ConfigError, TrainingConfig
from vessa_server.training.episodes import Episode, EpisodeGenerator
from vessa_server.training.objective import Objective, StepOutput, picture
from vessa_server.training.report import Report
from vessa_server.training.schedule import Schedule

STATE_FILE, BAD_BATCH_FILE = "training_state.safetensors", "bad_batch.safetensors"
VALIDATION_NUMBER = 1_000_000_007
# Notes in the weights' file: how many batches were drawn and images seen, by all runs so far.
BATCHES_NOTE, IMAGES_NOTE = "batches", "images"
COMPILED = ("image_encoder", "memory_encoder", "memory_attention", "sam_mask_decoder", "refinement")

Result = TypeVar("Result")


class NotFiniteError(FloatingPointError):
    """A loss was not finite; the message names the batch and where it was saved."""


class Export(Protocol):
    """Turns the trained model into the plain one whose weights are stored."""

    def __call__(self, model: Vessa) -> Vessa:
        """The model to store."""
        ...


def as_it_is(model: Vessa) -> Vessa:
    """The trained model is the one to store."""
    return model


@dataclasses.dataclass(frozen=True)
class Start:
    """Where the runs before this one stopped: batches drawn, and images seen."""

    batches: int = 0
    images: int = 0

    @staticmethod
    def after(folder: Path | None) -> Start:
        """What the weights in ``folder`` say."""
        notes = checkpoint.notes(folder) if folder is not None else {}
        return Start(int(notes.get(BATCHES_NOTE, "0")), int(notes.get(IMAGES_NOTE, "0")))


class Stage1Trainer:
    """Trains :class:`Vessa` on episodes and keeps an exponential average of its weights.

    Every process of a run holds the same weights and takes every ``world``-th batch.
    """

    def __init__(
        self,
        model: Vessa,
        generator: EpisodeGenerator,
        out: Path,
        *,
        held_out: EpisodeGenerator | None = None,
        processes: Processes | None = None,
        encoder_rate: float = 1.0,
        export: Export = as_it_is,
        identity: str = "",
        start: Start | None = None,
    ) -> None:
        """``identity`` is what a stored state must have in common with this run to go on.

        Raises:
            ConfigError: several processes, whose clocks differ, are to end by the clock.
        """
        self.processes = processes or Processes()
        self.model = model.to(self.processes.device)
        self.generator = generator
        self.held_out = held_out
        self.config: TrainingConfig = generator.config
        if self.config.minutes and self.processes.world > 1:
            raise ConfigError("training.minutes: of one process only; set training.steps")
        self.out = out
        self.start = start or Start()
        self.schedule = Schedule(self.config)
        self.images = self.start.images
        self.export = export
        self.identity = identity
        for parameter in model.image_encoder.parameters():
            parameter.requires_grad_(parameter.requires_grad and encoder_rate > 0)
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(model, self.config.weight_decay, encoder_rate), fused=True
        )
        self.average = {n: p.detach().clone() for n, p in self._trained()}
        objective = Objective(self.model, self.config, generator.planner.texts.prompts())
        objective.to(self.processes.device)
        self.plain_objective = objective
        self.objective: nn.Module = objective
        if self.config.compile:
            for name in COMPILED:
                # The number of templates changes what memory attention sees.
                model.get_submodule(name).compile(dynamic=name == "memory_attention")
        if self.processes.world > 1:
            # Parts that a batch does not use (no text is read) have no gradient.
            self.objective = DistributedDataParallel(
                objective, find_unused_parameters=True, broadcast_buffers=False
            )
        # The first update, from 0, whose loss was not finite; -1 for none.
        self._bad = torch.full((), -1, device=self.processes.device)

    @property
    def step(self) -> int:
        """Updates done."""
        return self.schedule.step

    def run(self) -> None:
        """Train to the end of the schedule, resuming from ``out`` where a state is there.

        Raises:
            NotFiniteError: a loss is not finite.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        last_saved = last = time.monotonic()
        if not self.resume():
            self._look_at_first_batch()
        first = self.processes.first
        with Report(self.out, self.schedule) if first else nullcontext() as report:
            while not self.schedule.over:
                output = self._fitting(self._next)
                now = time.monotonic()
                self.schedule.seconds += now - last
                last = now
                if report is not None:
                    self._report(report, output)
                if self.step % self.config.log_every == 0:
                    self._check_finite()
                if first and now - last_saved > 60 * self.config.checkpoint_minutes:
                    self.save()
                    last_saved = time.monotonic()
            if report is not None:
                report.flush(self.images)
        self._check_finite()
        if first:
            self.save()

    def _report(self, report: Report, output: StepOutput) -> None:
        step, config = self.step, self.config
        report.step(output.scalars)
        if step % config.log_every == 0:
            report.flush(self.images)
        if step % config.image_every == 0:
            report.picture(step, picture(self._episode(step - 1), output))
        if self.held_out is not None and step % config.validate_every == 0:
            report.write(step, self.validate())

    def _episode(self, step: int) -> Episode:
        """The last batch of update ``step`` in this process."""
        return self.generator[self._numbers_of(step)[-1]]

    def _fitting(self, work: Callable[[], Result]) -> Result:
        """Do ``work``; with half of the batch from then on where memory is too small."""
        while True:
            groups = self.config.groups // 2
            try:
                return work()
            except torch.OutOfMemoryError:
                if groups < 1 or self.processes.world > 1:
                    raise
            # Outside of `except`, whose traceback holds what was computed.
            self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            console.print(f"Out of memory: going on with batches of {groups} tasks")
            self.config = dataclasses.replace(self.config, groups=groups)
            self.generator = self.generator.with_config(self.config)
            self.schedule.config = self.config

    def _next(self) -> StepOutput:
        return self.train_step([self.generator[n] for n in self._numbers_of(self.step)])

    def train_step(self, episodes: list[Episode]) -> StepOutput:
        """One optimiser update from ``accumulate`` batches; returns the last one's output."""
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate * group["rate"]
        self.optimizer.zero_grad(set_to_none=True)
        output: StepOutput | None = None
        finite = torch.ones((), dtype=torch.bool, device=self.processes.device)
        for index, (number, episode) in enumerate(
            zip(self._numbers_of(self.step), episodes, strict=True)
        ):
            torch.manual_seed(self.config.seed * 1_000_003 + number)
            last = index == len(episodes) - 1
            waits = not last and isinstance(self.objective, DistributedDataParallel)
            with self.objective.no_sync() if waits else nullcontext():  # type: ignore[operator]
                with self._precision():
                    output = self.objective(episode)
                assert output is not None
                finite &= torch.isfinite(output.total.detach())
                (output.total / len(episodes)).backward()
        assert output is not None
        self.images += sum(len(e.image_N3HW) for e in episodes) * self.processes.world
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        finite &= torch.isfinite(norm)
        self._bad = torch.where((self._bad < 0) & ~finite, self.step, self._bad)
        # The fused optimiser leaves everything as it is where this is not 0.
        self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.schedule.step += 1
        self._average()
        return output

    @torch.no_grad()
    def _average(self) -> None:
        # A short average at first, so that it is not held back by the start.
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        trained: list[Tensor] = [p for _, p in self._trained()]
        torch._foreach_lerp_(list(self.average.values()), trained, 1 - decay)

    def _check_finite(self) -> None:
        """Stop where a loss was not finite, with its batch in a file."""
        bad = int(self._bad)
        if bad < 0:
            return
        episode = self._episode(bad)
        tensors = {
            f.name: value.contiguous().clone().cpu()
            for f in dataclasses.fields(episode)
            if isinstance(value := getattr(episode, f.name), Tensor)
        }
        file = self.out / BAD_BATCH_FILE
        checkpoint.write_safetensors(file, tensors, {"step": str(bad)})
        raise NotFiniteError(
            f"loss of update {bad} is not finite; its batch is in {file}, the weights are those "
            f"before it. Go on in another folder with --init {self.out} and a lower "
            "learning_rate, or with precision: fp32"
        )

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean losses and scores of the averaged weights on held-out subjects."""
        assert self.held_out is not None
        current = self._swap_in(self.average)
        self.model.eval()
        found: dict[str, list[Tensor]] = {}
        for index in range(self.config.validation_batches):
            torch.manual_seed(VALIDATION_NUMBER + index)
            with self._eager(), self._precision():
                output = self.plain_objective(self.held_out[VALIDATION_NUMBER + index])
            for name, value in output.scalars.items():
                found.setdefault(f"val/{name}", []).append(value)
        self._swap_in(current)
        return {name: float(torch.stack(values).mean()) for name, values in found.items()}

    def save(self) -> None:
        """Write the training state and the averaged weights, atomically."""
        tensors = {f"model.{n}": t.detach() for n, t in self.model.state_dict().items()}
        tensors |= {f"average.{n}": t for n, t in self.average.items()}
        state = self.optimizer.state_dict()["state"]
        for index, name in enumerate(self._optimised()):
            for key, value in state.get(index, {}).items():
                tensors[f"optimizer.{name}.{key}"] = value
        tensors["step"] = torch.tensor(self.step)
        tensors["seconds"] = torch.tensor(self.schedule.seconds, dtype=torch.float64)
        tensors["images"] = torch.tensor(self.images)
        # Tied parameters share memory, which safetensors refuses: each gets its own copy.
        copies = {n: t.contiguous().clone() for n, t in tensors.items()}
        checkpoint.write_safetensors(self.out / STATE_FILE, copies, {"identity": self.identity})
        current = self._swap_in(self.average)
        checkpoint.save(self.export(self.model), self.out, notes=self._notes())
        self._swap_in(current)

    def _notes(self) -> dict[str, str]:
        drawn = self.start.batches + self.step * self.config.accumulate * self.processes.world
        return {BATCHES_NOTE: str(drawn), IMAGES_NOTE: str(self.images)}

    def use_average(self) -> None:
        """Put the averaged weights into the model; training does not go on after that."""
        self._swap_in(self.average)

    def resume(self) -> bool:
        """Load the state in ``out``, if there is one.

        Raises:
            ConfigError: the state is of another run, or damaged.
        """
        file = self.out / STATE_FILE
        if not file.is_file():
            return False
        try:
            with safe_open(file, framework="pt") as stored:
                identity = (stored.metadata() or {}).get("identity", "")
            if identity != self.identity:
                raise ConfigError(
                    f"out: {self.out} holds a run of other data, beginning or configuration; "
                    "go on with those that it was begun with, or in another folder, from its "
                    f"weights with --init {self.out}"
                )
            self._take_state(load_file(file, device=str(self.processes.device)))
        except (SafetensorError, RuntimeError, KeyError) as error:
            raise ConfigError(
                f"out: {file} cannot be read: {error}; choose another folder, or move it away"
            ) from error
        return True

    def _take_state(self, tensors: dict[str, Tensor]) -> None:
        self.schedule.step = int(tensors["step"])
        self.schedule.seconds = float(tensors["seconds"])
        self.images = int(tensors["images"])
        self.model.load_state_dict(
            {n[len("model.") :]: t for n, t in tensors.items() if n.startswith("model.")}
        )
        self.average = {name: tensors[f"average.{name}"].clone() for name in self.average}
        state = self.optimizer.state_dict()
        for index, name in enumerate(self._optimised()):
            prefix = f"optimizer.{name}."
            values = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
            if values:
                state["state"][index] = values
        self.optimizer.load_state_dict(state)

    def _look_at_first_batch(self) -> None:
        """Fail before hours of computing, not after: one forward, and its picture."""
        if not self.processes.first:
            return

        def look() -> tuple[Episode, StepOutput]:
            episode = self._episode(0)
            torch.manual_seed(self.config.seed)
            with torch.no_grad(), self._eager(), self._precision():
                return episode, self.plain_objective(episode)

        episode, output = self._fitting(look)
        save_image(picture(episode, output), self.out / "first_batch.png", nrow=1)
        if not bool(torch.isfinite(output.total)):
            raise NotFiniteError(f"first batch: loss is not finite: {output.scalars}")

    def _precision(self) -> torch.autocast:
        return autocast(self.processes.device, self.config.precision)

    @staticmethod
    def _eager() -> AbstractContextManager[object]:
        """Without compiled kernels: looks without gradients are too few to compile for."""
        stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
        return stance

    def _numbers_of(self, step: int) -> range:
        """Batches of this process in update ``step``: as if one process had them all."""
        accumulate, world = self.config.accumulate, self.processes.world
        first = self.start.batches + (step * world + self.processes.rank) * accumulate
        return range(first, first + accumulate)

    def _swap_in(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Put ``values`` into the model; returns what was there."""
        before = {n: p.detach().clone() for n, p in self._trained()}
        with torch.no_grad():
            for name, parameter in self._trained():
                parameter.copy_(values[name])
        return before

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]

    def _optimised(self) -> list[str]:
        """Names of the optimiser's parameters, in its order."""
        names = {id(p): n for n, p in self.model.named_parameters()}
        return [names[id(p)] for group in self.optimizer.param_groups for p in group["params"]]


def _parameter_groups(
    model: Vessa, weight_decay: float, encoder_rate: float
) -> list[dict[str, object]]:
    """Weight decay on matrices only; the image encoder at its own rate."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = encoder_rate if name.startswith("image_encoder.") else 1.0
            decay = weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "rate": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
