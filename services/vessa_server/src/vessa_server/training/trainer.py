"""Stage 1 training loop: resumable bit for bit, on one or several processes, with TensorBoard."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torchvision.utils import save_image

from vessa_server.model import checkpoint
from vessa_server.model.vessa import Vessa
from vessa_server.training.config import ConfigError, TrainingConfig
from vessa_server.training.episodes import Episode, EpisodeDataset
from vessa_server.training.objective import Objective, StepOutput, picture
from vessa_server.training.processes import Processes
from vessa_server.training.report import Report

STATE_FILE = "training_state.safetensors"
VALIDATION_SEED = 1_000_000_007


class Export(Protocol):
    """Turns the trained model into the plain one whose weights are stored."""

    def __call__(self, model: Vessa) -> Vessa:
        """The model to store."""
        ...


class Stage1Trainer:
    """Trains :class:`Vessa` on episodes and keeps an exponential average of its weights.

    Every process of a run holds the same weights and takes every ``world``-th batch.
    """

    def __init__(
        self,
        model: Vessa,
        dataset: EpisodeDataset,
        out: Path,
        *,
        held_out: EpisodeDataset | None = None,
        processes: Processes | None = None,
        encoder_rate: float = 1.0,
        export: Export = lambda model: model,
        identity: str = "",
    ) -> None:
        """``identity`` is what a stored state must have in common with this run to go on."""
        self.processes = processes or Processes()
        self.model = model.to(self.processes.device)
        self.dataset = dataset
        self.held_out = held_out
        self.config: TrainingConfig = dataset.config
        self.out = out
        self.step = 0
        self.export = export
        self.identity = identity
        for parameter in model.image_encoder.parameters():
            parameter.requires_grad_(parameter.requires_grad and encoder_rate > 0)
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(model, self.config.weight_decay, encoder_rate), fused=True
        )
        self.average = {n: p.detach().clone() for n, p in self._trained()}
        objective = Objective(self.model, self.config)
        self.objective: nn.Module = objective
        if self.processes.world > 1:
            # Parts that a batch does not use (a bank without text pairs) have no gradient.
            self.objective = DistributedDataParallel(
                objective, find_unused_parameters=True, broadcast_buffers=False
            )

    def run(self) -> None:
        """Train up to ``config.steps``, resuming from ``out`` where a state is there."""
        self.out.mkdir(parents=True, exist_ok=True)
        if not self.resume():
            self._look_at_first_batch()
        batches = iter(
            DataLoader(
                self.dataset,
                batch_size=None,
                sampler=self._batch_numbers(),
                num_workers=1,
                prefetch_factor=4,
            )
        )
        last_saved = time.monotonic()
        first = self.processes.first
        with Report(self.out, self.config.steps, self.step) if first else nullcontext() as report:
            while self.step < self.config.steps:
                episodes = [next(batches) for _ in range(self.config.accumulate)]
                output = self.train_step(episodes)
                if report is None:
                    continue
                self._report(report, episodes[-1], output)
                if time.monotonic() - last_saved > 60 * self.config.checkpoint_minutes:
                    self.save()
                    last_saved = time.monotonic()
        if first:
            self.save()

    def _report(self, report: Report, episode: Episode, output: StepOutput) -> None:
        step, config = self.step, self.config
        report.step(output.scalars)
        if step % config.log_every == 0:
            report.flush(step, learning_rate(step, config))
        if step % config.image_every == 0:
            report.picture(step, picture(episode, output))
        if self.held_out is not None and step % config.validate_every == 0:
            report.write(step, self.validate())

    def train_step(self, episodes: list[Episode]) -> StepOutput:
        """One optimiser update from ``accumulate`` batches; returns the last one's output."""
        self.model.train()
        rate = learning_rate(self.step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        self.optimizer.zero_grad(set_to_none=True)
        output: StepOutput | None = None
        for index, (number, episode) in enumerate(
            zip(self._numbers_of(self.step), episodes, strict=True)
        ):
            torch.manual_seed(self.config.seed * 1_000_003 + number)
            last = index == len(episodes) - 1
            waits = not last and isinstance(self.objective, DistributedDataParallel)
            with self.objective.no_sync() if waits else nullcontext():  # type: ignore[operator]
                with self._precision():
                    output = self.objective(episode.to(self.processes.device))
                assert output is not None
                if not bool(torch.isfinite(output.total)):
                    raise FloatingPointError(
                        f"loss at step {self.step} is not finite: {output.scalars}"
                    )
                (output.total / len(episodes)).backward()
        assert output is not None
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        self.step += 1
        # A short average at first, so that it is not held back by the random start.
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, parameter in self._trained():
                self.average[name].lerp_(parameter, 1 - decay)
        return output

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean losses and scores of the averaged weights on held-out subjects."""
        assert self.held_out is not None
        current = self._swap_in(self.average)
        self.model.eval()
        found: dict[str, list[float]] = {}
        for index in range(self.config.validation_batches):
            torch.manual_seed(VALIDATION_SEED + index)
            with self._precision():
                output = Objective(self.model, self.config)(
                    self.held_out[VALIDATION_SEED + index].to(self.processes.device)
                )
            for name, value in output.scalars.items():
                found.setdefault(f"val/{name}", []).append(value)
        self._swap_in(current)
        return {name: sum(values) / len(values) for name, values in found.items()}

    def save(self) -> None:
        """Write the training state and the averaged weights, atomically."""
        tensors = {f"model.{n}": t.detach() for n, t in self.model.state_dict().items()}
        tensors |= {f"average.{n}": t for n, t in self.average.items()}
        state = self.optimizer.state_dict()["state"]
        for index, name in enumerate(self._optimised()):
            for key, value in state.get(index, {}).items():
                tensors[f"optimizer.{name}.{key}"] = value
        tensors["step"] = torch.tensor(self.step)
        # Tied parameters share memory, which safetensors refuses: each gets its own copy.
        copies = {n: t.contiguous().clone() for n, t in tensors.items()}
        checkpoint.write_safetensors(self.out / STATE_FILE, copies, {"identity": self.identity})
        current = self._swap_in(self.average)
        checkpoint.save(self.export(self.model), self.out)
        self._swap_in(current)

    def use_average(self) -> None:
        """Put the averaged weights into the model; training does not go on after that."""
        self._swap_in(self.average)

    def resume(self) -> bool:
        """Load the state in ``out``, if there is one.

        Raises:
            ConfigError: the state is of another configuration.
        """
        file = self.out / STATE_FILE
        if not file.is_file():
            return False
        with safe_open(file, framework="pt") as stored:
            identity = (stored.metadata() or {}).get("identity", "")
        if identity != self.identity:
            raise ConfigError(
                f"out: {self.out} holds a run of another configuration; choose another folder, "
                "or the configuration that it was begun with"
            )
        tensors = load_file(file, device=str(self.processes.device))
        self.step = int(tensors["step"])
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
        return True

    def _look_at_first_batch(self) -> None:
        """Fail before hours of computing, not after: one forward, and its picture."""
        if not self.processes.first:
            return
        episode = self.dataset[0].to(self.processes.device)
        torch.manual_seed(self.config.seed)
        with torch.no_grad(), self._precision():
            output = Objective(self.model, self.config)(episode)
        save_image(picture(episode, output), self.out / "first_batch.png", nrow=1)
        if not bool(torch.isfinite(output.total)):
            raise FloatingPointError(f"first batch: loss is not finite: {output.scalars}")

    def _batch_numbers(self) -> list[int]:
        return [n for step in range(self.step, self.config.steps) for n in self._numbers_of(step)]

    def _numbers_of(self, step: int) -> range:
        """Batches of this process in update ``step``: as if one process had them all."""
        accumulate, world = self.config.accumulate, self.processes.world
        first = (step * world + self.processes.rank) * accumulate
        return range(first, first + accumulate)

    def _precision(self) -> torch.autocast:
        device, wanted = self.processes.device.type, self.config.precision
        capable = device == "cuda" and torch.cuda.is_bf16_supported()
        enabled = wanted == "bf16" or (wanted == "auto" and capable)
        return torch.autocast(device, dtype=torch.bfloat16, enabled=enabled)

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


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then a cosine down to 2 % of the peak."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


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
