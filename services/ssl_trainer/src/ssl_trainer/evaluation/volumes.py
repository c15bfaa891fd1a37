"""Prediction of whole volumes in their native geometry. Axes: C classes, H W space."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ssl_trainer.data import frame
from ssl_trainer.models import predict_probabilities
from vessa_client import UInt8Array, files

# Slices that are predicted at once.
BATCH = 16


def predict_slices(
    student: nn.Module,
    image: files.ImageFile,
    size: int,
    turns: Sequence[float] = (0.0,),
    window: frame.Window | None = None,
) -> list[UInt8Array]:
    """Label map of each slice, (H, W): of the sum of its probabilities in views.

    ``turns`` are the degrees by which the views are turned, ``window`` the intensities that become
    black and white; without it they are percentiles of each slice.
    """
    slices = list(image.slices())
    units = [frame.unit(s, size, window) for s in slices]
    transforms = [frame.WeakTransform(angle=math.radians(turn)) for turn in turns]
    labels = []
    for start in range(0, len(slices), BATCH):
        shapes = [s.shape for s in slices[start : start + BATCH]]
        sums = [torch.zeros(())] * len(shapes)
        for transform in transforms:
            views_B1HW = torch.stack(
                [
                    frame.resample(unit, frame.theta(shape, transform), size, mode="bilinear")
                    for unit, shape in zip(units[start:], shapes, strict=False)
                ]
            )
            for index, maps in enumerate(predict_probabilities(student, views_B1HW)):
                sums[index] = sums[index] + frame.restore(maps, shapes[index], transform)
        labels += [total.max(dim=0).indices.to(torch.uint8).numpy() for total in sums]
    return labels


def stack(labels: list[UInt8Array], image: files.ImageFile) -> UInt8Array:
    """Slices to a volume with the axes of the image; a picture gets a first axis of 1."""
    return np.stack(labels, axis=0 if image.axis is None else image.axis)


def spacing(image: files.ImageFile) -> tuple[float, ...]:
    """Voxel size along the axes of :func:`stack`."""
    if image.nifti is None:
        return (1.0, 1.0, 1.0)
    return tuple(float(z) for z in image.nifti.header.get_zooms()[:3])
