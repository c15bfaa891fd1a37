"""Run a training with a progress bar."""

from __future__ import annotations

from ssl_trainer.unimatch.trainer import UniMatchTrainer
from vessa_client.console import console, progress_bar


def run_with_progress(trainer: UniMatchTrainer) -> None:
    """Train to the last step; the bar shows loss, best validation Dice and ETA."""
    if not trainer.processes.first:
        trainer.run()
        return
    console.print(trainer.split.found, highlight=False)
    with progress_bar() as progress:
        task = progress.add_task("Training", total=trainer.config.steps, note="")

        def on_step(step: int, scalars: dict[str, float]) -> None:
            note = f"loss {scalars['loss/total']:.3f}"
            if trainer.best >= 0:
                note += f"  best val Dice {trainer.best:.3f}"
            progress.update(task, completed=step, note=note)

        trainer.run(on_step)
