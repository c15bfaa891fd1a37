"""What every job is given, and the trainers that it makes of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from gpu_jobs import manifest as manifests
from gpu_jobs import settings
from gpu_jobs.clock import Clock
from gpu_jobs.jobs import Job, rehearsal
from gpu_jobs.manifest import Manifest
from vessa_server.training import config as configuration
from vessa_server.training import pack as packs
from vessa_server.training.config import Stage1Config
from vessa_server.training.pack import Pack
from vessa_server.training.processes import Processes
from vessa_server.training.run import build
from vessa_server.training.trainer import Stage1Trainer

# A rehearsal: every part of the way, on a CPU, in less than a minute.
SMALL: dict[str, Any] = {
    "minutes": 0.5,
    "log_every": 1,
    "image_every": 2,
    "validate_every": 3,
    "validation_batches": 1,
    "compile": False,
}
SMALL_GROUPS = 2


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
        given = settings.parsed(os.environ.get("VESSA_SET", "").split())
        recipe = configuration.load(self.folder / manifests.RECIPE)
        return settings.changed(self.manifest.settings, given, recipe.training.learning_rate)

    def config(self, **changes: Any) -> Stage1Config:
        """The recipe with the job's settings, then ``changes``; small in a rehearsal."""
        values = {**self.settings, **changes}
        if rehearsal():
            groups = min(SMALL_GROUPS, int(values.get("groups", SMALL_GROUPS)))
            values = {**values, **SMALL, "groups": groups}
        return configuration.load(self.folder / manifests.RECIPE, values)

    @cached_property
    def slices(self) -> Pack:
        """The carried pack."""
        return packs.read(self.folder / manifests.PACK)

    def trainer(self, run: Path, **changes: Any) -> Stage1Trainer:
        """A trainer of :meth:`config` that begins with the job's weights."""
        processes = Processes(device=self.device)
        config = self.config(**changes)
        return build(config, self.slices, run, init=self.weights, processes=processes)

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
