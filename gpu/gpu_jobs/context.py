"""What every job is given."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpu_jobs import manifest as manifests
from gpu_jobs import overrides
from gpu_jobs.clock import Clock
from gpu_jobs.errors import JobError
from gpu_jobs.manifest import Manifest
from gpu_jobs.preflight import rehearsal
from vessa_server.model import checkpoint
from vessa_server.model.vessa import Vessa
from vessa_server.training import config as configuration
from vessa_server.training import pack as packs
from vessa_server.training.config import Stage1Config
from vessa_server.training.pack import Pack

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
        manifest: what was prepared.
        folder: what was carried.
        out: what comes back.
        run: for files that are too large for that.
        clock: of the whole command.
        machine: from :func:`gpu_jobs.preflight.check`.
        device: that is computed on.
    """

    manifest: Manifest
    folder: Path
    out: Path
    run: Path
    clock: Clock
    machine: dict[str, Any]
    device: torch.device

    @property
    def weights(self) -> Path:
        """Folder of the weights to begin with."""
        return Path(self.manifest.weights)

    @property
    def settings(self) -> dict[str, Any]:
        """Prepared settings, with those of the command line over them."""
        given = overrides.parsed(os.environ.get("VESSA_SET", "").split())
        recipe = configuration.load(self.folder / manifests.RECIPE)
        return overrides.changed(self.manifest.settings, given, recipe.training.learning_rate)

    def config(self, **changes: Any) -> Stage1Config:
        """The recipe with the job's settings, then ``changes``; small in a rehearsal."""
        settings = {**self.settings, **changes}
        if rehearsal():
            settings = {**settings, **SMALL}
            settings["groups"] = min(SMALL_GROUPS, int(settings.get("groups", SMALL_GROUPS)))
        return configuration.load(self.folder / manifests.RECIPE, settings)

    def slices(self) -> Pack:
        """The carried pack, without the data sets that are left out."""
        slices = packs.read(self.folder / manifests.PACK)
        return packs.without(slices, list(self.manifest.without))

    def result(self) -> dict[str, Any]:
        """What every result begins with."""
        manifest = self.manifest
        return {
            "job": manifest.job,
            "date": manifest.date,
            "commit": manifest.commit,
            "finished": False,
            **self.machine,
            "settings": self.settings,
            "without": list(manifest.without),
            "weights": manifest.weights,
            "weights_before": manifest.weights_digest,
        }

    def check_weights(self) -> None:
        """Whether the weights to begin with are those that the job was prepared for.

        Raises:
            JobError: a file is missing, or they are others.
        """
        try:
            found = checkpoint.digest(self.weights)
        except OSError as error:
            raise JobError(
                f"weights: {self.weights}: {error.strerror}: {error.filename}"
            ) from error
        if found != self.manifest.weights_digest:
            raise JobError(
                f"weights: {self.weights} has digest {found[:12]}, "
                f"expected {self.manifest.weights_digest[:12]}; prepare again"
            )


def random_parts(model: Vessa, weights: Path) -> str:
    """Says which tensors of ``model`` the weights lack, and so begin random; empty for none."""
    stored = checkpoint.read_safetensors(weights / checkpoint.WEIGHTS_FILE)
    lacking = [
        n for n in model.state_dict() if n not in stored and not n.endswith("lm_head.weight")
    ]
    if not lacking:
        return ""
    return f"{len(lacking)} tensors begin random, such as {', '.join(sorted(lacking)[:3])}"
