"""What every job is given."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from gpu_jobs import settings
from gpu_jobs.clock import Clock
from gpu_jobs.jobs import Job
from gpu_jobs.manifest import Manifest


@dataclass(frozen=True)
class Context:
    """What every job is given.

    Attributes:
        job: which.
        manifest: what was prepared.
        folder: what was carried.
        out: what comes back.
        run: for files that are too large for that.
        clock: of the whole command.
        machine: from :func:`gpu_jobs.preflight.check`.
    """

    job: Job
    manifest: Manifest
    folder: Path
    out: Path
    run: Path
    clock: Clock
    machine: dict[str, Any]

    @cached_property
    def device(self) -> torch.device:
        """That is computed on."""
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")

    @property
    def weights(self) -> Path:
        """Folder of the weights to begin with."""
        return Path(self.manifest.weights)

    @property
    def settings(self) -> dict[str, Any]:
        """Prepared settings, with those of the command line over them."""
        return self.manifest.settings | self.given

    @property
    def given(self) -> dict[str, Any]:
        """Settings of the command line."""
        return settings.parsed(os.environ.get("VESSA_SET", "").split())

    def result(self) -> dict[str, Any]:
        """What every result begins with."""
        manifest = self.manifest
        return {
            "job": self.job.name,
            "date": manifest.date,
            "commit": manifest.commit,
            "finished": False,
            **self.machine,
            "settings": self.settings,
            "weights": manifest.weights,
            "weights_before": manifest.weights_digest,
        }
