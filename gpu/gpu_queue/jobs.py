"""The jobs, in the order in which they are meant to run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# A command may take ten minutes. A job is meant to be over well before, and ends itself then.
GRACE_SECONDS = 25


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job.

    Attributes:
        name: as in ``gpu/run NAME``.
        what: one line.
        seconds: from the start of its command to its end.
        brings: files that come back.
        trains: whether it brings weights that the next one begins with.
        settings: over the recipe's.
        least_rate: images a second below which training is ended after a minute.
    """

    name: str
    what: str
    seconds: int
    brings: tuple[str, ...]
    trains: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    least_rate: float = 0.0

    @property
    def hard_seconds(self) -> int:
        """When it is ended, whatever it does."""
        return self.seconds + GRACE_SECONDS


# What a leg brings: weights, what it says of itself, and two pictures. The log of the console
# comes back too, and is not needed.
LEG = (
    "model.safetensors",
    "tokenizer.json",
    "vlm_config.json",
    "log.jsonl",
    "result.json",
    "first_batch.png",
)
# One of a CPU's cores reaches about 20.
LEAST_RATE = 300.0

JOBS = {
    job.name: job
    for job in (
        Job(
            name="stage1-smoke",
            what="is everything right on this machine, and which batches are fastest?",
            seconds=180,
            brings=("result.json", "picture.png"),
        ),
        Job(
            name="stage1-leg",
            what="Stage 1 training at a constant learning rate; may be repeated",
            seconds=540,
            brings=LEG,
            trains=True,
            settings={"decay_share": 0.0, "checkpoint_minutes": 1.0},
            least_rate=LEAST_RATE,
        ),
        Job(
            name="stage1-decay",
            what="the same, with a learning rate that falls to nothing, to end well",
            seconds=540,
            brings=LEG,
            trains=True,
            settings={"decay_share": 1.0, "checkpoint_minutes": 1.0},
            least_rate=LEAST_RATE,
        ),
    )
}
