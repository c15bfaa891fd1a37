"""Batches by step number: which slices, which transforms. Resuming needs no other state.

Axes: B batch, H W space.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ssl_trainer.config import TrainConfig
from ssl_trainer.data import frame, rich
from ssl_trainer.data.cases import Slice
from vessa_common.processes import Processes

# Region of interest of each series; of one that is not in it the whole slices are seen.
Regions = Mapping[str, frame.Roi]


@dataclass(frozen=True)
class LabelledBatch:
    """Augmented labelled slices: (B, 1, H, W) and (B, H, W) int64."""

    image_B1HW: Tensor
    labels_BHW: Tensor


@dataclass(frozen=True)
class UnlabelledBatch:
    """Weak views of unlabelled slices, and where in its slice each pixel of a view is."""

    slices: tuple[Slice, ...]
    grids: tuple[Tensor, ...]
    image_B1HW: Tensor

    def inside(self) -> Tensor:
        """Which pixels of the views show the slice, (B, H, W) bool; the others are padding."""
        return torch.stack([grid.abs().amax(dim=-1) <= 1 for grid in self.grids])

    def warp(self, index: int, maps_CHW: Tensor, *, mode: str) -> Tensor:
        """Maps of slice ``index`` in its view, (C, size, size)."""
        return frame.sample(maps_CHW, self.grids[index], mode=mode)


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
    slices: list[Slice],
    indices: list[int],
    config: TrainConfig,
    rng: np.random.Generator,
    regions: Regions,
) -> LabelledBatch:
    """Augment labelled slices in place, shape and intensity."""
    size = config.data.size
    images, labels = [], []
    for index in indices:
        item = slices[index]
        assert item.labels is not None
        roi = regions.get(item.series)
        unit = item.unit(size, roi)
        truth = torch.from_numpy(item.labels).float()[None]
        if config.labelled_augmentation is not None:
            image, mask = rich.vary(unit, truth, size, config.labelled_augmentation, rng, roi)
        else:
            image, mask = _vary_weakly(unit, truth, config, rng, roi)
        images.append(image)
        labels.append(mask[0].long())
    return LabelledBatch(torch.stack(images).float(), torch.stack(labels))


def _vary_weakly(
    image_1HW: Tensor,
    labels_1HW: Tensor,
    config: TrainConfig,
    rng: np.random.Generator,
    roi: frame.Roi | None,
) -> tuple[Tensor, Tensor]:
    size = config.data.size
    transform = frame.WeakTransform.draw(rng, config.augmentation)
    grid = frame.grid(frame.theta(labels_1HW.shape[1:], roi, transform), size)
    view = frame.sample(image_1HW, grid, mode="bilinear")
    mask = frame.sample(labels_1HW, grid, mode="nearest")
    gain, lift = rng.uniform(0.8, 1.2), rng.normal(0, 0.05)
    return (view ** float(np.exp(rng.normal(0, 0.2)))) * gain + lift, mask


def unlabelled_batch(
    slices: list[Slice],
    indices: list[int],
    config: TrainConfig,
    rng: np.random.Generator,
    regions: Regions,
) -> UnlabelledBatch:
    """Weak views of unlabelled slices."""
    size = config.data.size
    chosen = tuple(slices[index] for index in indices)
    grids, views = [], []
    for item in chosen:
        roi = regions.get(item.series)
        transform = frame.WeakTransform.draw(rng, config.augmentation)
        grid = frame.grid(frame.theta(item.image.shape, roi, transform), size)
        unit = item.unit(size, roi)
        grids.append(grid)
        views.append(frame.sample(unit, grid, mode="bilinear"))
    return UnlabelledBatch(chosen, tuple(grids), torch.stack(views))


def canonical(item: Slice, size: int, roi: frame.Roi | None) -> Tensor:
    """The un-augmented slice on the canvas, (1, size, size)."""
    unit = item.unit(size, roi)
    return frame.resample(unit, frame.theta(item.image.shape, roi), size, mode="bilinear")
