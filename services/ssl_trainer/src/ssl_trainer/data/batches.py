"""Batches by step number: which slices, which transforms. Resuming needs no other state.

Axes: B batch, H W space.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ssl_trainer.config import TrainConfig
from ssl_trainer.data import frame, rich
from ssl_trainer.data.cases import Slice


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


def labelled_batch(
    slices: list[Slice], indices: list[int], config: TrainConfig, rng: np.random.Generator
) -> LabelledBatch:
    """Augment labelled slices in place, shape and intensity."""
    size = config.data.size
    images, labels = [], []
    for index in indices:
        item = slices[index]
        assert item.labels is not None
        truth = torch.from_numpy(item.labels).float()[None]
        if config.labelled_augmentation is not None:
            image, mask = rich.vary(item.unit(size), truth, size, config.labelled_augmentation, rng)
        else:
            image, mask = _vary_weakly(item.unit(size), truth, config, rng)
        images.append(image)
        labels.append(mask[0].long())
    return LabelledBatch(torch.stack(images).float(), torch.stack(labels))


def _vary_weakly(
    image_1HW: Tensor, labels_1HW: Tensor, config: TrainConfig, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    size = config.data.size
    matrix = frame.theta(labels_1HW.shape[1:], frame.WeakTransform.draw(rng, config.augmentation))
    grid = frame.grid(matrix, size)
    view = frame.sample(image_1HW, grid, mode="bilinear")
    mask = frame.sample(labels_1HW, grid, mode="nearest")
    gain, lift = rng.uniform(0.8, 1.2), rng.normal(0, 0.05)
    return (view ** float(np.exp(rng.normal(0, 0.2)))) * gain + lift, mask


def unlabelled_batch(
    slices: list[Slice], indices: list[int], config: TrainConfig, rng: np.random.Generator
) -> UnlabelledBatch:
    """Weak views of unlabelled slices."""
    size = config.data.size
    chosen = tuple(slices[index] for index in indices)
    thetas = [
        frame.theta(item.image.shape, frame.WeakTransform.draw(rng, config.augmentation))
        for item in chosen
    ]
    grids = tuple(frame.grid(matrix, size) for matrix in thetas)
    views = [
        frame.sample(item.unit(size), grid, mode="bilinear")
        for item, grid in zip(chosen, grids, strict=True)
    ]
    return UnlabelledBatch(chosen, grids, torch.stack(views))


def canonical(item: Slice, size: int) -> Tensor:
    """The un-augmented slice on the canvas, (1, size, size)."""
    return frame.resample(item.unit(size), frame.theta(item.image.shape), size, mode="bilinear")
