"""How much of the time that a job was given is left, and what ends it when that is over."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from gpu_jobs.errors import OUT_OF_TIME
from gpu_jobs.jobs import GRACE_SECONDS


@dataclass(frozen=True)
class Clock:
    """Times since the epoch: when the command began, and should end."""

    started: float
    deadline: float

    @classmethod
    def of(cls, seconds: float) -> Self:
        """Counted from when the command began; VESSA_SECONDS may give less or more time."""
        started = float(os.environ.get("VESSA_STARTED") or time.time())
        return cls(started, started + float(os.environ.get("VESSA_SECONDS") or seconds))

    def left(self) -> float:
        """Seconds to the deadline."""
        return self.deadline - time.time()

    def gone(self) -> float:
        """Seconds since the command began."""
        return time.time() - self.started

    def watch(self, last: Callable[[], None]) -> threading.Event:
        """End the process soon after the deadline, after ``last``; the event calls that off."""
        done = threading.Event()

        def end() -> None:
            if done.wait(max(0.0, self.left() + GRACE_SECONDS)):
                return
            print(f"Ended by the clock after {self.gone():.0f} s; $OUT has all but the last minute")
            try:
                last()
            finally:
                os._exit(OUT_OF_TIME)

        threading.Thread(target=end, daemon=True).start()
        return done
