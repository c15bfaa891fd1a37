"""One run of the comparison, trained and scored in a process of its own.

``python -m gpu_jobs.stage2_train FOLDER --stop SECONDS ...``. It goes on from the state in
``FOLDER``, stops at a time since the epoch with its state written, and says how far it is in
``progress.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from torch import nn

import ssl_scores
from gpu_jobs.errors import NOT_FINITE, OUT_OF_TIME
from gpu_jobs.jobs import rehearsal
from ssl_trainer import schedule
from ssl_trainer.config import load
from ssl_trainer.data.cases import find
from ssl_trainer.regions import training as locator_training
from ssl_trainer.training.trainer import Trainer
from vessa_client import files
from vessa_common import processes

INPUT, PROGRESS = "input.yaml", "progress.json"
# Between two notes on how far it is.
NOTE_SECONDS = 2.0
# Updates of the locator in a rehearsal.
LOCATOR_STEPS = 4


class Stopped(Exception):  # noqa: N818  it is no error
    """It is time to stop."""


def main() -> None:
    """Train to the end, or to the time to stop; then score."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--server")
    parser.add_argument("--stop", type=float, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--tune", action="store_true", help="measure which convolutions are fast")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.benchmark = arguments.tune
    torch.set_float32_matmul_precision("high")
    if rehearsal():
        locator_training.STEPS = LOCATOR_STEPS
    try:
        train(arguments.folder, arguments.server, arguments.stop, compiled=arguments.compile)
        score(arguments.folder, arguments.stop)
    except Stopped:
        sys.exit(OUT_OF_TIME)
    except FloatingPointError as error:
        print(f"Error: {error}", flush=True)
        sys.exit(NOT_FINITE)


def train(folder: Path, server: str | None, stop: float, *, compiled: bool = False) -> None:
    """Train to the last step.

    Raises:
        Stopped: it is time to; the state is written.
    """
    config = load(folder / INPUT, [f"assistant.server={json.dumps(server)}"])
    with processes.joined() as group:
        trainer = Trainer(config, folder, group)
        if compiled:
            _compile(trainer.method.students)
        watch = Watch(trainer, folder, stop)
        try:
            trainer.run(watch.on_step)
        except Stopped:
            trainer.save()
            raise
        finally:
            watch.note()


def _compile(students: nn.ModuleList) -> None:
    """Compile the networks that are trained; what cannot be compiled runs as it did.

    Not the teacher: it also predicts volumes, each with as many slices as it has.
    """
    import torch._dynamo

    torch._dynamo.config.suppress_errors = True
    for student in students:
        student.compile(dynamic=False)  # batches of the same few sizes all through the training


class Watch:
    """Notes how far a training is, and stops it in time."""

    def __init__(self, trainer: Trainer, folder: Path, stop: float) -> None:
        self.trainer, self.folder, self.stop = trainer, folder, stop
        self.loss = 0.0
        self.noted = 0.0
        self.begun: int | None = None

    def on_step(self, step: int, scalars: dict[str, float]) -> None:
        """After each update.

        Raises:
            Stopped: it is time to, and this was not the last one.
        """
        if self.begun is None:
            self.begun = step - 1
        self.loss = scalars.get("loss/total", self.loss)  # a GPU is not always waited for
        now = time.time()
        if now - self.noted > NOTE_SECONDS:
            self.note()
        if now > self.stop and step < self.trainer.config.steps:
            raise Stopped

    def note(self) -> None:
        """Write down how far it is."""
        self.noted = time.time()
        weights = next(self.trainer.student.parameters())
        memory = torch.cuda.max_memory_allocated() if weights.is_cuda else 0
        found = {
            "step": self.trainer.step,
            "time": self.noted,
            "loss": self.loss,
            "cold": self._cold(),
            "device": str(weights.device),
            "memory_mib": memory >> 20,
            "threads": torch.get_num_threads(),
        }
        files.write_text(self.folder / PROGRESS, json.dumps(found))

    def _cold(self) -> bool:
        """Whether VESSA sees slices for the first time, which takes it far longer."""
        trainer, config = self.trainer, self.trainer.config
        if trainer.step >= schedule.assisted(config.steps, config.assistant):
            return False
        begun = trainer.step if self.begun is None else self.begun
        seen = (trainer.step - begun) * config.accumulate * config.unlabelled_batch
        return trainer.pipeline is not None and seen < len(trainer.unlabelled)


def score(folder: Path, stop: float) -> None:
    """Score the splits that are not scored yet.

    Raises:
        Stopped: no time is left to begin one.
    """
    split = find(load(folder / "config.yaml").data)
    for name in ("val", "test"):
        file = ssl_scores.scores_file(folder, name)
        if file.is_file() or not getattr(split, name):
            continue
        if time.time() > stop:
            raise Stopped
        files.write_text(file, json.dumps(ssl_scores.score(folder, name)))


if __name__ == "__main__":
    main()
