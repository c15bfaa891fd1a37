"""Learning rate over a run: warm-up, constant, and a decay by updates or by the clock."""

from __future__ import annotations

from dataclasses import dataclass

from vessa_server.training.config import TrainingConfig

# Left at the end of the decay.
LAST = 0.01


@dataclass
class Schedule:
    """Where a run is, and how fast it learns there.

    A run that ends after a number of updates is the same however often it was broken off; one that
    ends by the clock uses the time it has.

    Attributes:
        config: of the run.
        step: updates done.
        seconds: of training done.
    """

    config: TrainingConfig
    step: int = 0
    seconds: float = 0.0

    @property
    def progress(self) -> float:
        """Done share of the run, by updates or by the clock, whichever is further."""
        steps, minutes = self.config.steps, self.config.minutes
        by_steps = self.step / steps if steps else 0.0
        by_clock = self.seconds / (60 * minutes) if minutes else 0.0
        return max(by_steps, by_clock)

    @property
    def over(self) -> bool:
        """Whether the run is at its end."""
        return self.progress >= 1

    @property
    def rate(self) -> float:
        """Learning rate of the next update."""
        config = self.config
        warm = min(1.0, (self.step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
        left = 1 - min(1.0, self.progress)
        decay = config.decay_share
        fallen = min(1.0, left / decay) if decay else 1.0
        return config.learning_rate * warm * (LAST + (1 - LAST) * fallen)
