"""How busy the GPU is, by ``nvidia-smi`` once a second: no thread of ours asks the device."""

from __future__ import annotations

import subprocess
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

COMMAND = (
    "nvidia-smi",
    "--query-gpu=utilization.gpu,memory.used,power.draw",
    "--format=csv,noheader,nounits",
)
SECONDS = 1.0


@dataclass(frozen=True)
class Sample:
    """One look: when, percent of the time in which a kernel ran, MiB in use, watts."""

    time: float
    busy: float
    memory: float
    power: float


def parse(line: str, now: float) -> Sample | None:
    """A line of nvidia-smi; None where it has no numbers, such as ``[N/A]``."""
    try:
        busy, memory, power = (float(part) for part in line.split(","))
    except ValueError:
        return None
    return Sample(now, busy, memory, power)


@dataclass
class Sampler:
    """Collects samples while it is open; without ``nvidia-smi`` there are none."""

    samples: list[Sample] = field(default_factory=list)
    _closed: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        threading.Thread(target=self._sample, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()

    def busy(self, since: float = 0.0) -> float | None:
        """Mean percent of the time in which a kernel ran, since a time; None without samples."""
        found = [s.busy for s in list(self.samples) if s.time >= since]
        return round(sum(found) / len(found), 1) if found else None

    def power(self, since: float = 0.0) -> float | None:
        """Mean watts since a time; None without samples."""
        found = [s.power for s in list(self.samples) if s.time >= since]
        return round(sum(found) / len(found), 1) if found else None

    def _sample(self) -> None:
        while not self._closed.wait(SECONDS):
            try:
                answer = subprocess.run(
                    COMMAND, capture_output=True, text=True, timeout=20, check=True
                )
            except (OSError, subprocess.SubprocessError):
                return
            first = answer.stdout.partition("\n")[0]
            if (sample := parse(first, time.time())) is not None:
                self.samples.append(sample)
