"""Run a training with a progress bar."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, nullcontext
from functools import partial

from ssl_trainer.training.metrics import Metrics
from ssl_trainer.training.trainer import Trainer
from vessa_client.console import print_line, progress_bar


def run_with_progress(trainer: Trainer, metrics_port: int | None = None) -> None:
    """Train to the last step; the bars show regions, then loss, best validation Dice and ETA.

    Raises:
        OSError: ``metrics_port``, where Prometheus may read what is logged, is in use.
    """
    if not trainer.processes.first:
        trainer.run()
        return
    print_line(trainer.split.found)
    exposed = nullcontext() if metrics_port is None else closing(Metrics(metrics_port))
    with exposed as metrics, progress_bar() as progress:
        training = progress.add_task(
            "Training", total=trainer.config.steps, note="", start=False, visible=False
        )

        def stage(name: str, total: int) -> Callable[[], object]:
            return partial(progress.advance, progress.add_task(name, total=total, note=""))

        def on_step(step: int, scalars: dict[str, float]) -> None:
            if not progress.tasks[training].started:
                progress.start_task(training)
            progress.update(training, completed=step, visible=True)
            if metrics is not None:
                metrics.observe(step, scalars)
            if "loss/total" not in scalars:
                return
            note = f"loss {scalars['loss/total']:.3f}"
            if trainer.best >= 0:
                note += f"  best val Dice {trainer.best:.3f}"
            if trainer.pipeline is not None and trainer.pipeline.assistant.away:
                note += "  VESSA away"
            progress.update(training, note=note)

        trainer.run(on_step, stage)
