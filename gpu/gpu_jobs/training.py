"""What a job of Stage 1 is given: a recipe, slices, and the trainers that it makes of them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from gpu_jobs import manifest as manifests
from gpu_jobs.context import Context
from gpu_jobs.jobs import rehearsal
from gpu_jobs.settings import changed
from vessa_common.processes import Processes
from vessa_server.training import config as configuration
from vessa_server.training import pack as packs
from vessa_server.training.config import Stage1Config
from vessa_server.training.pack import Pack
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


class TrainingContext(Context):
    """What a job of Stage 1 is given."""

    @property
    def settings(self) -> dict[str, Any]:
        """As of every job; the learning rate follows the batch."""
        recipe = configuration.load(self.folder / manifests.RECIPE)
        return changed(self.manifest.settings, self.given, recipe.training.learning_rate)

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
