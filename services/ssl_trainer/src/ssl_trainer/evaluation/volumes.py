"""Prediction of whole volumes in their native geometry. Axes: C classes, H W space."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ssl_trainer.data import frame
from ssl_trainer.evaluation.metrics import Spacing
from ssl_trainer.models import predict_probabilities
from ssl_trainer.regions import find
from ssl_trainer.regions.locator import SIZE, Locator
from vessa_client import AnyArray, UInt8Array, files

# Slices that are predicted at once.
BATCH = 16
# NIfTI's codes of metre, millimetre and micrometre, in the lowest bits of ``xyzt_units``.
MILLIMETRES = {1: 1000.0, 2: 1.0, 3: 0.001}
UNIT_OF_SPACE = 7
# Quarter turns of the views; see :func:`predict_slices`.
Quarters = Literal["none", "average", "choose"]


@dataclass(frozen=True)
class _Volume:
    """Slices in [0, 1], their shapes in the file, and the region of interest of all."""

    units: list[Tensor]
    shapes: list[tuple[int, ...]]
    roi: frame.Roi | None


def predict_slices(
    student: nn.Module,
    image: files.ImageFile,
    size: int,
    turns: Sequence[float] = (0.0,),
    window: frame.Window | None = None,
    locator: Locator | None = None,
    quarters: Quarters = "none",
) -> list[UInt8Array]:
    """Label map of each slice, (H, W): of the sum of its probabilities in views.

    Args:
        student: in evaluation mode.
        image: the volume, or picture.
        size: side of the student's canvas.
        turns: degrees by which the views are turned.
        window: intensities that become black and white; without it they are percentiles of each
            slice.
        locator: finds the region of interest that the views show; without it they show whole
            slices.
        quarters: ``average``: views are turned by each quarter, mirrored and not; for a student
            with ``augmentation.quarter_turns``, which learned from such views. ``choose``: all
            slices are turned by that quarter in which the student is most sure of what it finds.
    """
    slices = list(image.slices())
    roi = None if locator is None else _located(locator, slices, window)
    units = [frame.unit(s, size, window, roi) for s in slices]
    volume = _Volume(units, [s.shape for s in slices], roi)
    if quarters != "choose":
        transforms = _views(turns)
        if quarters == "average":
            transforms = _views(turns, range(4)) + _views(turns, range(4), mirror=True)
        return [_labels(maps) for maps in _summed(student, volume, size, transforms)]
    found = []
    for quarter in range(4):
        maps = _summed(student, volume, size, _views(turns, [quarter]))
        found.append(_labels_and_certainty(maps))
    return max(found, key=lambda pair: pair[1])[0]


def _views(
    turns: Sequence[float], quarters: Sequence[int] = (0,), *, mirror: bool = False
) -> list[frame.WeakTransform]:
    return [
        frame.WeakTransform(angle=math.radians(turn) + frame.QUARTER * quarter, mirror_x=mirror)
        for quarter in quarters
        for turn in turns
    ]


def _summed(
    student: nn.Module, volume: _Volume, size: int, transforms: Sequence[frame.WeakTransform]
) -> Iterator[Tensor]:
    """The sum of each slice's probabilities in views, (C, H, W)."""
    for start in range(0, len(volume.shapes), BATCH):
        shapes = volume.shapes[start : start + BATCH]
        sums = [torch.zeros(())] * len(shapes)
        for transform in transforms:
            matrices = [frame.theta(shape, volume.roi, transform) for shape in shapes]
            views_B1HW = torch.stack(
                [
                    frame.resample(unit, matrix, size, mode="bilinear")
                    for unit, matrix in zip(volume.units[start:], matrices, strict=False)
                ]
            )
            for index, maps in enumerate(predict_probabilities(student, views_B1HW)):
                restored = frame.restore(maps, shapes[index], volume.roi, transform)
                sums[index] = sums[index] + restored
        yield from sums


def _labels(maps_CHW: Tensor) -> UInt8Array:
    labels_HW: UInt8Array = maps_CHW.max(dim=0).indices.to(torch.uint8).numpy()
    return labels_HW


def _labels_and_certainty(volume: Iterator[Tensor]) -> tuple[list[UInt8Array], float]:
    """Labels of slices, and the Dice that they have if the probabilities are right.

    That is, for each structure, twice the probability on its label over the sum of all its
    probability and its label's area; a structure that is found nowhere has 0. The mean counts.
    """
    labels, overlap_C, total_C = [], torch.zeros(()), torch.zeros(())
    for maps_CHW in volume:
        probability_CHW = maps_CHW / maps_CHW.sum(dim=0).clamp(min=1e-6)
        labels.append(_labels(maps_CHW))
        own_HW = torch.from_numpy(labels[-1])
        on_CHW = own_HW == torch.arange(len(maps_CHW))[:, None, None]
        overlap_C = overlap_C + (probability_CHW * on_CHW).sum(dim=(1, 2))
        total_C = total_C + probability_CHW.sum(dim=(1, 2)) + on_CHW.sum(dim=(1, 2))
    dice_C = 2 * overlap_C / total_C.clamp(min=1e-6)
    return labels, float(dice_C[1:].mean())


def _located(
    locator: Locator, slices: Sequence[AnyArray], window: frame.Window | None
) -> frame.Roi:
    some = files.spread(len(slices), find.SLICES)
    units = [frame.unit(slices[index], SIZE, window) for index in some]
    return locator.locate(units, slices[0].shape)


def stack(labels: list[UInt8Array], image: files.ImageFile) -> UInt8Array:
    """Slices to a volume with the axes of the image; a picture gets a first axis of 1."""
    return np.stack(labels, axis=0 if image.axis is None else image.axis)


def spacing(image: files.ImageFile) -> Spacing:
    """Voxel size along the axes of :func:`stack`, in mm where the file knows it, else in pixels.

    A NIfTI header without a unit is taken to be in mm, as is the custom, unless all its sizes are
    1, which is what is written where nobody knows them.
    """
    pixels = Spacing(sizes=(1.0, 1.0, 1.0), unit="pixels")
    if image.nifti is None:
        return pixels
    header = image.nifti.header
    zooms = [float(zoom) for zoom in header.get_zooms()[:3]]
    # An axis of one voxel may have any size.
    used = [zoom for zoom, length in zip(zooms, image.pixels.shape, strict=True) if length > 1]
    stated = MILLIMETRES.get(int(header["xyzt_units"]) & UNIT_OF_SPACE)
    if not all(math.isfinite(z) and z > 0 for z in used) or (stated is None and set(used) <= {1.0}):
        return pixels
    scale = 1.0 if stated is None else stated
    return Spacing(sizes=tuple(zoom * scale for zoom in zooms), unit="mm")
