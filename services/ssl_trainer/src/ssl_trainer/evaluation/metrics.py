"""Scores of each case with MONAI: Dice, HD95 and average surface distance.

Of volumes in 3D, of pictures and volumes of one slice in 2D.

Axes: C classes, X Y Z space.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
)
from torch import Tensor

from vessa_client import UInt8Array

# With the digits after the point that they are shown with.
METRICS = {"dice": 3, "hd95": 1, "asd": 2}
Unit = Literal["mm", "pixels"]


@dataclass(frozen=True, kw_only=True)
class Spacing:
    """Size of a voxel along each axis; 1 pixel where a file does not say more."""

    sizes: tuple[float, ...]
    unit: Unit


@dataclass(frozen=True, kw_only=True)
class CaseScores:
    """Scores of one case, a value for each class; distances in ``unit``.

    A structure that is in neither image scores Dice 1 and distance 0; one that is in only
    one of them scores Dice 0 and, as distance, the diagonal of the image. Its surface are its
    voxels that share a face with the background; outside of the image is background.
    """

    name: str
    unit: Unit
    dice: tuple[float, ...]
    hd95: tuple[float, ...]
    asd: tuple[float, ...]


def score(
    name: str,
    predicted_XYZ: UInt8Array,
    truth_XYZ: UInt8Array,
    num_classes: int,
    spacing: Spacing,
    *,
    distances: bool = True,
) -> CaseScores:
    """Scores of one case; without ``distances`` those are NaN, which saves most of the time."""
    # Along an axis of one voxel all of a structure would be surface.
    axes = [axis for axis, length in enumerate(truth_XYZ.shape) if length > 1] or [0]
    shape = [truth_XYZ.shape[axis] for axis in axes]
    sizes = [spacing.sizes[axis] for axis in axes]
    predicted = _one_hot(predicted_XYZ.reshape(shape), num_classes)
    truth = _one_hot(truth_XYZ.reshape(shape), num_classes)
    # MONAI gives NaN where the truth is empty, unless told that two empty masks agree.
    dice = compute_dice(predicted, truth, include_background=True, ignore_empty=False)[0].tolist()
    diagonal = math.hypot(*(n * size for n, size in zip(shape, sizes, strict=True)))
    nan = [float("nan")] * num_classes
    hd95, asd = nan, list(nan)
    if distances:
        hd95, asd = [], []
        for index in range(num_classes):
            p, t = predicted[:, index : index + 1], truth[:, index : index + 1]
            if not p.any() or not t.any():
                missing = 0.0 if not p.any() and not t.any() else diagonal
                hd95.append(missing)
                asd.append(missing)
                continue
            found = _distances(p, t, sizes)
            hd95.append(found[0])
            asd.append(found[1])
    return CaseScores(
        name=name, unit=spacing.unit, dice=tuple(dice), hd95=tuple(hd95), asd=tuple(asd)
    )


def _distances(predicted: Tensor, truth: Tensor, sizes: Sequence[float]) -> tuple[float, float]:
    """95 % Hausdorff distance and average symmetric surface distance of one structure."""
    options = {"include_background": True, "spacing": list(sizes)}
    with warnings.catch_warnings():
        # MONAI calls itself with an argument that it warns about.
        warnings.simplefilter("ignore", FutureWarning)
        hausdorff = compute_hausdorff_distance(predicted, truth, percentile=95, **options)
        surface = compute_average_surface_distance(predicted, truth, symmetric=True, **options)
    return float(hausdorff), float(surface)


def distance_unit(scores: Sequence[CaseScores]) -> str:
    """Unit of the distances of all cases, for people; names both where files differ."""
    return " and ".join(sorted({s.unit for s in scores}))


def foreground_dice(predicted: Tensor, truth: Tensor) -> float | None:
    """Mean Dice of the structures of the truth, over label maps of any shape; None without any."""
    scores = []
    for value, size in enumerate(torch.bincount(truth.flatten()).tolist()):
        if value and size:
            found = predicted == value
            scores.append(2 * int((found & (truth == value)).sum()) / (int(found.sum()) + size))
    return sum(scores) / len(scores) if scores else None


def _one_hot(labels: UInt8Array, num_classes: int) -> Tensor:
    """(1, C, ...) without background."""
    values = torch.from_numpy(labels.astype(np.int64))
    return torch.stack([values == i for i in range(1, num_classes + 1)])[None].float()
