"""Batches by step number: which slices, which transforms. Resuming needs no other state.

Axes: B batch, C channels, H W space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch import Tensor

from ssl_trainer.config import AugmentationConfig, RichAugmentationConfig, TrainConfig
from ssl_trainer.data import frame, rich
from ssl_trainer.data.frame import WeakTransform
from ssl_trainer.data.planes import Planes
from ssl_trainer.data.slices import Slice
from ssl_trainer.data.store import SliceStore
from vessa_common.processes import Processes
from vessa_common.transfer import to_device


@dataclass(frozen=True)
class LabelledBatch:
    """Augmented labelled slices: (B, 1, H, W) and (B, H, W) int64."""

    image_B1HW: Tensor
    labels_BHW: Tensor


@dataclass(frozen=True)
class UnlabelledBatch:
    """Weak views of unlabelled slices, and where in its slice each pixel of a view is."""

    slices: tuple[Slice, ...]
    grid_BHW2: Tensor
    image_B1HW: Tensor

    def inside(self) -> Tensor:
        """Which pixels of the views show the slice, (B, H, W) bool; the others are padding."""
        return self.grid_BHW2.abs().amax(dim=-1) <= 1

    def warp(self, maps: Sequence[Tensor], *, mode: str) -> Tensor:
        """Maps of all slices, (C, H, W) of the host each, in their views, (B, C, size, size)."""
        return Planes.of(maps).to(self.grid_BHW2.device).sample(self.grid_BHW2, mode=mode)


class SliceSampler:
    """Slices of a step: every slice once in an epoch, in an order of the epoch's own."""

    def __init__(self, count: int, batch: int, seed: int) -> None:
        if count < 1:
            raise ValueError("count: 0 slices, expected at least 1")
        self.count, self.batch, self.seed = count, batch, seed

    def indices(self, step: int) -> list[int]:
        """Indices of the slices of ``step``."""
        out = []
        for position in range(step * self.batch, (step + 1) * self.batch):
            epoch, place = divmod(position, self.count)
            out.append(_order(self.count, self.seed, epoch)[place])
        return out


@lru_cache(maxsize=8)
def _order(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    """Indices of all slices in the order of an epoch."""
    order: list[int] = np.random.default_rng([seed, epoch]).permutation(count).tolist()
    return tuple(order)


def numbers(step: int, config: TrainConfig, processes: Processes) -> range:
    """Batches of this process in update ``step``: as if one process had them all."""
    first = (step * processes.world + processes.rank) * config.accumulate
    return range(first, first + config.accumulate)


def labelled_batch(
    store: SliceStore, rows: Sequence[int], config: TrainConfig, rng: np.random.Generator
) -> LabelledBatch:
    """Augment labelled slices in place, shape and intensity.

    Args:
        store: of all labelled slices.
        rows: which of them.
        config: of the run.
        rng: of the batch.
    """
    how = config.labelled_augmentation or _weak(config.augmentation)
    drawn = rich.draw(rng, how, len(rows), len(config.data.classes) + 1)
    plain_BHW2 = store.grids(rows, _transforms(rng, how.geometry, len(rows)))
    variation = to_device(drawn, store.device)
    grid_BHW2 = rich.bent(plain_BHW2, variation)
    labels_BHW = store.labels(rows).sample(grid_BHW2, mode="nearest")[:, 0].long()
    image_B1HW = store.images(rows).sample(grid_BHW2, mode="bilinear")
    return LabelledBatch(rich.recoloured(image_B1HW, labels_BHW, variation), labels_BHW)


def _weak(geometry: AugmentationConfig) -> RichAugmentationConfig:
    """The weak augmentation of labelled slices."""
    return RichAugmentationConfig(
        geometry=geometry, elastic=0, structure_shift=0, gamma=rich.WEAK_GAMMA, bias=0, noise=0
    )


def unlabelled_batch(
    store: SliceStore, rows: Sequence[int], config: TrainConfig, rng: np.random.Generator
) -> UnlabelledBatch:
    """Weak views of unlabelled slices; see :func:`labelled_batch`."""
    grid_BHW2 = store.grids(rows, _transforms(rng, config.augmentation, len(rows)))
    image_B1HW = store.images(rows).sample(grid_BHW2, mode="bilinear")
    return UnlabelledBatch(tuple(store.slices[row] for row in rows), grid_BHW2, image_B1HW)


def _transforms(
    rng: np.random.Generator, config: AugmentationConfig, count: int
) -> list[WeakTransform]:
    return [WeakTransform.draw(rng, config) for _ in range(count)]


def canonical(item: Slice, size: int, roi: frame.Roi | None) -> Tensor:
    """The un-augmented slice on the canvas, (1, size, size)."""
    unit = item.unit(size, roi)
    return frame.resample(unit, frame.theta(item.image.shape, roi), size, mode="bilinear")
