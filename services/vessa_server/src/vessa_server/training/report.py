"""What a run shows: progress with an ETA, TensorBoard, and a line of JSON for each interval."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from vessa_client import files
from vessa_client.console import progress_bar
from vessa_server.training.schedule import Schedule

# Of the bar, since a run may end by the clock: percent.
PARTS = 100


class Report:
    """Written by the first process of a run only."""

    def __init__(self, out: Path, schedule: Schedule) -> None:
        purge = schedule.step + 1
        self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=purge)
        self.schedule = schedule
        self.log_file = out / "log.jsonl"
        self._forget_after(schedule.step)
        self.progress = progress_bar()
        self.task = self.progress.add_task("Stage 1", total=PARTS, note="")
        self.progress.update(self.task, completed=PARTS * schedule.progress)
        self._recent: dict[str, list[Tensor]] = {}
        self._seen: tuple[float, int] | None = None

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()
        self.writer.close()

    def _forget_after(self, step: int) -> None:
        """Leave out what a run that was broken off had logged beyond its last state."""
        if self.log_file.is_file():
            lines = self.log_file.read_text().splitlines(keepends=True)
            kept = [line for line in lines if _whole(line) and json.loads(line)["step"] <= step]
            if len(kept) < len(lines):
                files.write_text(self.log_file, "".join(kept))

    def step(self, scalars: dict[str, Tensor]) -> None:
        """Note one update; its numbers stay where they are."""
        self.progress.update(self.task, completed=PARTS * self.schedule.progress)
        for name, value in scalars.items():
            self._recent.setdefault(name, []).append(value)

    def flush(self, images: int) -> None:
        """Write the means since the last time, and how many images a second there were."""
        if not self._recent:
            return
        means = {name: torch.stack(values).mean() for name, values in self._recent.items()}
        numbers = dict(zip(means, torch.stack(list(means.values())).tolist(), strict=True))
        self._recent.clear()
        now = time.monotonic()
        if self._seen is not None:
            numbers["images_per_second"] = (images - self._seen[1]) / (now - self._seen[0])
        self._seen = now, images
        numbers |= {
            "learning_rate": self.schedule.rate,
            "images": images,
            "seconds": self.schedule.seconds,
        }
        self.write(self.schedule.step, numbers)
        note = f"Dice {numbers['dice/one_shot']:.3f} loss {numbers['loss/total']:.3f}"
        self.progress.update(self.task, note=note)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write values to TensorBoard and to ``log.jsonl``."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        with self.log_file.open("a") as stream:
            stream.write(json.dumps({"step": step, **values}) + "\n")

    def picture(self, step: int, rows: Tensor) -> None:
        """Put pictures of an episode on TensorBoard."""
        self.writer.add_images("episode", rows, step)


def _whole(line: str) -> bool:
    """Whether a line was written to its end."""
    return line.endswith("}\n")
