"""Run a training with progress bars, or lines where nobody sees bars."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing, nullcontext

from rich.progress import Progress, TaskID

from ssl_trainer.training.metrics import Metrics
from ssl_trainer.training.trainer import Trainer
from vessa_client.console import errors, print_line, progress_bar


def run_with_progress(trainer: Trainer, metrics_port: int | None = None) -> None:
    """Train to the last step; the bars show regions, then loss, best validation Dice and ETA.

    Raises:
        OSError: ``metrics_port``, where Prometheus may read what is logged, is in use.
    """
    if not trainer.processes.first:
        trainer.run()
        return
    print_line(trainer.split.found)
    print_line(_assistance(trainer))
    exposed = nullcontext() if metrics_port is None else closing(Metrics(metrics_port))
    with exposed as metrics, progress_bar() as progress:
        shown = _Shown(trainer, progress, metrics)
        trainer.run(shown.on_step, shown.stage)


def _assistance(trainer: Trainer) -> str:
    assistant = trainer.config.assistant
    if assistant.server is None:
        return "VESSA: not used"
    return f"VESSA: at {assistant.server}, {assistant.bank or 'the default bank'}"


class _Shown:
    """What a training does, as bars; in a file, such as a job's log, a line for each validation."""

    def __init__(self, trainer: Trainer, progress: Progress, metrics: Metrics | None) -> None:
        self.trainer = trainer
        self.progress = progress
        self.metrics = metrics
        self.training = progress.add_task(
            "Training", total=trainer.config.steps, note="", start=False, visible=False
        )
        self.loss = ""
        self.began = (time.monotonic(), 0)

    def stage(self, name: str, total: int) -> Callable[[], object]:
        """A bar that goes when it is full."""
        task = self.progress.add_task(name, total=total, note="")
        if not errors.is_terminal:
            print_line(f"{name} ...")
        return lambda: self._advance(task)

    def _advance(self, task: TaskID) -> None:
        self.progress.advance(task)
        if self.progress.tasks[task].finished:
            self.progress.update(task, visible=False)

    def on_step(self, step: int, scalars: dict[str, float]) -> None:
        """After an update, with what was logged there."""
        if not self.progress.tasks[self.training].started:
            self.progress.start_task(self.training)
            self.began = (time.monotonic(), step)
        self.progress.update(self.training, completed=step, visible=True)
        if self.metrics is not None:
            self.metrics.observe(step, scalars)
        if "loss/total" in scalars:
            self.loss = f"loss {scalars['loss/total']:.3f}"
            self.progress.update(self.training, note=self._note())
        config = self.trainer.config
        if not errors.is_terminal and (not step % config.validate_every or step == config.steps):
            seconds = (time.monotonic() - self.began[0]) / max(1, step - self.began[1])
            left = seconds * (config.steps - step) / 60
            print_line(f"update {step:,} of {config.steps:,}, {self._note()}, {left:.0f} min left")

    def _note(self) -> str:
        parts = [self.loss]
        if self.trainer.best >= 0:
            parts.append(f"best val Dice {self.trainer.best:.3f}")
        if self.trainer.pipeline is not None and self.trainer.pipeline.assistant.away:
            parts.append("VESSA away")
        return "  ".join(parts)
