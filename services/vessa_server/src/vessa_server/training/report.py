"""What a run shows: progress with an ETA, TensorBoard, and a line of JSON for each interval."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from vessa_client.console import progress_bar


class Report:
    """Written by the first process of a run only."""

    def __init__(self, out: Path, steps: int, step: int) -> None:
        self.writer = SummaryWriter(str(out / "tensorboard"))
        self.log_file = out / "log.jsonl"
        self.progress = progress_bar()
        self.task = self.progress.add_task("Stage 1", total=steps, completed=step, note="")
        self._recent: dict[str, list[float]] = {}

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

    def step(self, scalars: dict[str, float]) -> None:
        """Note one update."""
        for name, value in scalars.items():
            self._recent.setdefault(name, []).append(value)
        self.progress.advance(self.task)

    def flush(self, step: int, rate: float) -> None:
        """Write the means since the last time."""
        means = {name: sum(v) / len(v) for name, v in self._recent.items()}
        self._recent.clear()
        self.write(step, {**means, "learning_rate": rate})
        note = f"Dice {means['dice/one_shot']:.3f} loss {means['loss/total']:.3f}"
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
