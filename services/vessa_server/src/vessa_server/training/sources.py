"""Real data for Stage 1: annotated volumes and pictures in the layouts that people use."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from PIL import Image

from vessa_client import AnyArray, UInt8Array, files
from vessa_server.engine.lru import ByteLru
from vessa_server.model.preprocess import HIGH_PERCENTILE, LOW_PERCENTILE
from vessa_server.training import layouts
from vessa_server.training.config import SourceConfig
from vessa_server.training.layouts import DataError, Subject
from vessa_server.training.tasks import ClassText, LabelledImage

HELD_OUT_EVERY = 10
# Pixels that are this much longer than wide, or wider than long, are resampled to squares.
ANISOTROPY = 1.1
MAX_VOXELS = 2**31


class FolderSource:
    """An annotated data set on disk; subjects are read when needed and kept while they fit."""

    named = True

    def __init__(self, config: SourceConfig, root: Path, *, held_out: bool = False) -> None:
        """List the subjects, less every tenth; ``held_out`` takes only those.

        Raises:
            DataError: the folder is missing, or has no labelled images.
        """
        self.config = config
        self.name = config.folder
        self.mirror = config.mirror
        listing = layouts.find(config.layout, root / config.folder, config.channel)
        self.texts = list(config.classes) or [
            ClassText(name=name) for name in listing.names.values()
        ]
        if not self.texts:
            raise DataError(f"data: {root / config.folder}: classes are not named; set `classes`")
        # Label values of the classes, in order.
        self._values = list(listing.names) if listing.names else None
        chosen = [
            subject
            for index, subject in enumerate(listing.subjects)
            if (index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) == held_out
        ]
        self._subjects = chosen or list(listing.subjects[-1:])
        self._held: ByteLru[_Arrays] = ByteLru(int(config.memory_gib * 2**30))

    def sample(
        self, rng: np.random.Generator, count: int
    ) -> tuple[list[LabelledImage], list[ClassText]]:
        """See :class:`TaskSource`. Slices of volumes lie at similar relative positions."""
        subjects = rng.choice(len(self._subjects), size=count, replace=count > len(self._subjects))
        axis = int(rng.choice(self.config.axes))
        position = rng.uniform()
        picked = []
        for index in subjects:
            arrays = self._read(self._subjects[int(index)])
            if arrays.labels.ndim == 3:
                relative = position + rng.normal(0.0, 0.08)
                picked.append(_slice(arrays, axis, relative, rng))
            else:
                picked.append(LabelledImage(arrays.image, arrays.labels))
        return picked, self.texts

    def _read(self, subject: Subject) -> _Arrays:
        held = self._held.get(subject.name)
        if held is None:
            held = _Arrays(subject, self.config, self._values)
            self._held.put(subject.name, held, held.image.nbytes + held.labels.nbytes)
        return held


class _Arrays:
    """Image as uint8 and labels as class indices of one subject."""

    def __init__(self, subject: Subject, config: SourceConfig, values: list[int] | None) -> None:
        image, spacing = _pixels(subject.image, labels=False)
        labels, _ = _pixels(subject.labels, labels=True)
        self.spacing = config.spacing or spacing
        if labels.ndim == 3 and image.ndim == 4:
            image = image[..., config.channel]
        if image.shape[: labels.ndim] != labels.shape:
            raise DataError(
                f"data: {subject.image} is {image.shape}, its labels are {labels.shape}"
            )
        self.image = _to_bytes(image, config.window)
        self.labels = _to_indices(labels, config, values)


def _pixels(file: Path, *, labels: bool) -> tuple[AnyArray, tuple[float, ...]]:
    """Array and voxel spacing; volumes may have modalities on a fourth axis."""
    if not file.name.lower().endswith(files.NIFTI_SUFFIXES):
        return files.read(file, labels=labels).pixels, (1.0, 1.0)
    try:
        image = nib.load(file)
        if math.prod(image.shape) > MAX_VOXELS:
            raise DataError(f"data: {file} has shape {image.shape}, more than {MAX_VOXELS} voxels")
        return np.asarray(image.dataobj), tuple(float(z) for z in image.header.get_zooms()[:3])
    except (OSError, EOFError, ImageFileError) as error:
        raise DataError(f"data: {file} cannot be read: {error}") from error


def _to_bytes(image: AnyArray, window: tuple[float, float] | None) -> UInt8Array:
    """To 0..255 by the window of intensities, or by percentiles; bytes stay as they are."""
    if window is None and image.dtype == np.uint8:
        return np.asarray(image, dtype=np.uint8)
    values = np.asarray(image, dtype=np.float32)
    low, high = window or np.percentile(values, [LOW_PERCENTILE, HIGH_PERCENTILE])
    scaled = (values - low) * (255.0 / max(float(high - low), 1e-6))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _to_indices(labels: AnyArray, config: SourceConfig, values: list[int] | None) -> UInt8Array:
    whole = labels.astype(np.int64)
    if config.binary:
        return np.asarray(whole > 0, dtype=np.uint8)
    if values is None:
        whole = np.where(whole > len(config.classes), 0, whole)
        return np.maximum(whole, 0).astype(np.uint8)
    out = np.zeros(whole.shape, dtype=np.uint8)
    for index, value in enumerate(values, start=1):
        out[whole == value] = index
    return out


def _slice(arrays: _Arrays, axis: int, relative: float, rng: np.random.Generator) -> LabelledImage:
    """A slice at ``relative`` of the annotated extent, sometimes just outside of it."""
    labels = arrays.labels
    other = tuple(a for a in range(3) if a != axis)
    annotated = np.flatnonzero(labels.any(axis=other))
    first, last = (annotated[0], annotated[-1]) if annotated.size else (0, labels.shape[axis] - 1)
    margin = 0.08 * (last - first) if rng.uniform() < 0.3 else 0.0
    wanted = first - margin + relative * (last - first + 2 * margin)
    index = int(np.clip(round(wanted), 0, labels.shape[axis] - 1))
    sides = [arrays.spacing[a] for a in other]
    finest = min(sides)
    shape = tuple(
        round(labels.shape[a] * side / finest) for a, side in zip(other, sides, strict=True)
    )
    image = np.take(arrays.image, index, axis=axis)
    chosen = np.take(labels, index, axis=axis)
    if max(sides) > ANISOTROPY * finest:
        image = _resize(image, shape, Image.Resampling.BILINEAR)
        chosen = _resize(chosen, shape, Image.Resampling.NEAREST)
    return LabelledImage(image, chosen)


def _resize(array: UInt8Array, shape: tuple[int, ...], resample: Image.Resampling) -> UInt8Array:
    height, width = shape
    return np.asarray(Image.fromarray(array).resize((width, height), resample), dtype=np.uint8)
