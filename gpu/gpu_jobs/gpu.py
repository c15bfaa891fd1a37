"""How busy the GPU is, by ``nvidia-smi`` once a second: no thread of ours asks the device."""

from __future__ import annotations

import subprocess
import threading
import time
from types import TracebackType
from typing import Self

SECONDS = 1.0


def ask(*names: str) -> list[str]:
    """What ``nvidia-smi`` says of the first GPU; empty where there is no such program."""
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [part.strip() for part in done.stdout.partition("\n")[0].split(",")]


class Sampler:
    """Looks while it is open; without ``nvidia-smi``, or numbers from it, it has seen nothing."""

    def __init__(self) -> None:
        # Of each look: when, percent of the time in which a kernel ran, watts.
        self.samples: list[tuple[float, float, float]] = []
        self._closed = threading.Event()

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

    def means(self, since: float = 0.0) -> dict[str, float | None]:
        """Mean percent of the time in which a kernel ran, and watts, since a time."""
        found = [sample[1:] for sample in list(self.samples) if sample[0] >= since]
        means = [round(sum(values) / len(values), 1) for values in zip(*found, strict=True)]
        busy, watts = means or (None, None)
        return {"gpu_busy_percent": busy, "gpu_watts": watts}

    def _sample(self) -> None:
        while not self._closed.wait(SECONDS):
            try:
                busy, watts = map(float, ask("utilization.gpu", "power.draw"))
            except ValueError:  # nothing, or [N/A]
                continue
            self.samples.append((time.time(), busy, watts))
