"""Prediction of whole volumes in their native geometry. Axes: C classes, H W space."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

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


def predict_slices(
    student: nn.Module,
    image: files.ImageFile,
    size: int,
    turns: Sequence[float] = (0.0,),
    window: frame.Window | None = None,
    locator: Locator | None = None,
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
    """
    slices = list(image.slices())
    roi = None if locator is None else _located(locator, slices, window)
    units = [frame.unit(s, frame.size_of_whole(s.shape, size, roi), window) for s in slices]
    transforms = [frame.WeakTransform(angle=math.radians(turn)) for turn in turns]
    labels = []
    for start in range(0, len(slices), BATCH):
        shapes = [s.shape for s in slices[start : start + BATCH]]
        sums = [torch.zeros(())] * len(shapes)
        for transform in transforms:
            matrices = [frame.theta(shape, roi, transform) for shape in shapes]
            views_B1HW = torch.stack(
                [
                    frame.resample(unit, matrix, size, mode="bilinear")
                    for unit, matrix in zip(units[start:], matrices, strict=False)
                ]
            )
            for index, maps in enumerate(predict_probabilities(student, views_B1HW)):
                sums[index] = sums[index] + frame.restore(maps, shapes[index], roi, transform)
        labels += [total.max(dim=0).indices.to(torch.uint8).numpy() for total in sums]
    return labels


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
