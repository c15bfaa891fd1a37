"""Prediction of whole volumes in their native geometry. Axes: C classes, H W space."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ssl_trainer.data import frame
from ssl_trainer.models import predict_probabilities
from vessa_client import UInt8Array, files


def predict_slices(student: nn.Module, image: files.ImageFile, size: int) -> list[UInt8Array]:
    """Label map of each slice, (H, W)."""
    slices = list(image.slices())
    views = [
        frame.resample(frame.to_unit_range(s), frame.theta(s.shape), size, mode="bilinear")
        for s in slices
    ]
    labels = []
    for start in range(0, len(views), 16):
        probabilities = predict_probabilities(student, torch.stack(views[start : start + 16]))
        for offset, maps in enumerate(probabilities):
            native = frame.restore(maps, slices[start + offset].shape)
            labels.append(native.max(dim=0).indices.to(torch.uint8).numpy())
    return labels


def stack(labels: list[UInt8Array], image: files.ImageFile) -> UInt8Array:
    """Slices to a volume with the axes of the image; a picture gets a first axis of 1."""
    return np.stack(labels, axis=0 if image.axis is None else image.axis)


def spacing(image: files.ImageFile) -> tuple[float, ...]:
    """Voxel size along the axes of :func:`stack`."""
    if image.nifti is None:
        return (1.0, 1.0, 1.0)
    return tuple(float(z) for z in image.nifti.header.get_zooms()[:3])
