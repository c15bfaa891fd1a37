"""How much of the time that a job was given is left, and what ends it when that is over."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from gpu_jobs.errors import OUT_OF_TIME
from gpu_jobs.manifest import Manifest


@dataclass(frozen=True)
class Clock:
    """Times since the epoch: when the command began, should end, and is ended."""

    started: float
    deadline: float
    hard: float

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """Counted from when the command began; VESSA_SECONDS may give less or more time."""
        started = float(os.environ.get("VESSA_STARTED") or time.time())
        seconds = float(os.environ.get("VESSA_SECONDS") or manifest.seconds)
        grace = manifest.hard_seconds - manifest.seconds
        return cls(started, started + seconds, started + seconds + grace)

    def left(self) -> float:
        """Seconds to the deadline."""
        return self.deadline - time.time()

    def gone(self) -> float:
        """Seconds since the command began."""
        return time.time() - self.started


def end_at(clock: Clock, last: Callable[[], None]) -> threading.Event:
    """End the process at the clock's hard end, after ``last``; the event set calls that off."""
    done = threading.Event()

    def watch() -> None:
        if done.wait(max(0.0, clock.hard - time.time())):
            return
        print(f"Ended by the clock after {clock.gone():.0f} s; $OUT has all but the last minute")
        last()
        os._exit(OUT_OF_TIME)

    threading.Thread(target=watch, daemon=True).start()
    return done
