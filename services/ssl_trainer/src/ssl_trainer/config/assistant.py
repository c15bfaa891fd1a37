"""The VESSA server, and what its answers count."""

from __future__ import annotations

from pathlib import Path

from pydantic.dataclasses import dataclass

from ssl_trainer.config.checks import STRICT, check_at_least, check_counts, check_fractions
from ssl_trainer.config.methods import UnlabelledLoss
from vessa_client.wire import MAX_VOLUME_SLICES


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AssistantConfig:
    """VESSA as third source of supervision.

    Attributes:
        server: host:port, or None for UniMatch V2 alone. A token is read from ``VESSA_TOKEN``.
        bank: name of the server's bank; empty for its default one.
        root_certificates: PEM file of those that the server's certificate is checked with; TLS is
            used where it is given.
        wait_seconds: how long a run that starts waits for a server that does not answer yet.
        required: stop when the server goes away, instead of training on alone.
        weight: λ_v at first. It falls to 0 as a cosine: a teacher becomes better than who taught
            it. With 0 VESSA is asked for regions only.
        decay_end: fraction of the run at which λ_v has reached 0; from then on VESSA is not asked.
        loss: for VESSA's labels. With Dice a small structure counts as much as the background, so
            that it appears earlier.
        teacher_share: share of the teacher's prediction in VESSA's labels, which rises to that from
            0 until ``decay_end``. Two that err in different places are better together, once the
            teacher is any good.
        feedback_start: fraction of the run from which the teacher's probabilities are sent as
            prompts.
        volume_slices: most slices of a volume that VESSA looks at together to find where in it the
            structures are. 0 asks about every slice alone: where they are not found in the same
            place all over a volume.
        ahead: updates by which VESSA is asked ahead. The first look at a volume takes as long as
            several updates: the more are under way, the less training waits. Prompts are as old.
        timeout_seconds: longest wait for the answers of a batch.
        retry_seconds: how long a server that failed is left alone.
    """

    server: str | None = None
    bank: str = ""
    root_certificates: Path | None = None
    wait_seconds: float = 20.0
    required: bool = False
    weight: float = 1.0
    decay_end: float = 0.2
    loss: UnlabelledLoss = "both"
    teacher_share: float = 0.2
    feedback_start: float = 0.1
    volume_slices: int = 6
    ahead: int = 16
    timeout_seconds: float = 60.0
    retry_seconds: float = 10.0

    def __post_init__(self) -> None:
        check_counts(self, "ahead")
        if not self.timeout_seconds > 0:
            raise ValueError(f"timeout_seconds: {self.timeout_seconds}, expected above 0")
        check_at_least(self, 0, "wait_seconds", "retry_seconds", "weight")
        if not 0 <= self.volume_slices <= MAX_VOLUME_SLICES:
            raise ValueError(
                f"volume_slices: {self.volume_slices}, expected 0..{MAX_VOLUME_SLICES}"
            )
        check_fractions(self, "decay_end", "feedback_start", "teacher_share")
