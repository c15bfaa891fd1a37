"""Real data for Stage 1: annotated volumes and pictures in the layouts that people use."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from PIL import Image

from vessa_client import AnyArray, UInt8Array, files
from vessa_server.model.preprocess import HIGH_PERCENTILE, LOW_PERCENTILE
from vessa_server.training import layouts
from vessa_server.training.config import SourceConfig
from vessa_server.training.layouts import DataError, Subject
from vessa_server.training.pack import PackedSource
from vessa_server.training.tasks import MAX_CLASSES, ClassText, PackedSlice

HELD_OUT_EVERY = 10
# With fewer subjects than this none can be spared.
MIN_SUBJECTS_TO_HOLD_OUT = 3
# Pixels that are this much longer than wide, or wider than long, are resampled to squares.
ANISOTROPY = 1.1
MAX_VOXELS = 2**31
# Beyond both ends of the annotated part, as a share of it: there the right answer is empty.
MARGIN = 0.15


def read(config: SourceConfig, root: Path) -> tuple[PackedSource, list[PackedSlice]]:
    """Read a data set.

    Every tenth subject is held out; of fewer than ten the last one, if there are three.

    Raises:
        DataError: the folder is missing, has no labelled images, or is not as described.
    """
    listing = layouts.find(config.layout, root / config.folder, config.channel)
    texts = tuple(config.classes) or tuple(ClassText(name=n) for n in listing.names.values())
    if not texts:
        raise DataError(f"data: {root / config.folder}: classes are not named; set `classes`")
    if len(texts) > MAX_CLASSES:
        raise DataError(
            f"data: {root / config.folder}: {len(texts)} classes, expected at most {MAX_CLASSES}"
        )
    values = list(listing.names) if listing.names else None
    names = list(dict.fromkeys(_subject(s, config) for s in listing.subjects))
    held_out = set(names[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY])
    if not held_out and len(names) >= MIN_SUBJECTS_TO_HOLD_OUT:
        held_out = {names[-1]}
    slices = []
    for subject in listing.subjects:
        name = _subject(subject, config)
        arrays = _Arrays(subject, config, values)
        slices += list(_slices(arrays, config, name, held_out=name in held_out))
    source = PackedSource(
        name=config.folder.split("/", maxsplit=1)[0],
        texts=texts,
        weight=config.weight,
        mirror=config.mirror,
    )
    return source, slices


def _subject(subject: Subject, config: SourceConfig) -> str:
    found = re.match(config.subject_pattern, subject.name)
    if found is None:
        raise DataError(
            f"data: {config.folder}: subject_pattern {config.subject_pattern!r} does not match "
            f"{subject.name!r}"
        )
    return found.group(found.re.groups and 1)


def _slices(
    arrays: _Arrays, config: SourceConfig, name: str, *, held_out: bool
) -> Iterator[PackedSlice]:
    if arrays.labels.ndim == 2:
        yield PackedSlice(image=arrays.image, labels=arrays.labels, subject=name, held_out=held_out)
        return
    for axis in dict.fromkeys(config.axes):
        other = tuple(a for a in range(3) if a != axis)
        annotated = np.flatnonzero(arrays.labels.any(axis=other))
        if not annotated.size:
            continue
        first, last = int(annotated[0]), int(annotated[-1])
        margin = max(1, round(MARGIN * (last - first)))
        lowest, highest = max(0, first - margin), min(arrays.labels.shape[axis] - 1, last + margin)
        count = min(config.slices_per_volume, highest - lowest + 1)
        for index in np.unique(np.linspace(lowest, highest, count).round().astype(int)):
            image, labels = _slice(arrays, axis, int(index))
            yield PackedSlice(
                image=image,
                labels=labels,
                subject=name,
                axis=axis,
                position=(int(index) - first) / max(1, last - first),
                held_out=held_out,
            )


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


def _slice(arrays: _Arrays, axis: int, index: int) -> tuple[UInt8Array, UInt8Array]:
    """Image and labels of one slice, with square pixels."""
    other = tuple(a for a in range(3) if a != axis)
    sides = [arrays.spacing[a] for a in other]
    finest = min(sides)
    shape = tuple(
        round(arrays.labels.shape[a] * side / finest) for a, side in zip(other, sides, strict=True)
    )
    image = np.take(arrays.image, index, axis=axis)
    chosen = np.take(arrays.labels, index, axis=axis)
    if max(sides) > ANISOTROPY * finest:
        image = _resize(image, shape, Image.Resampling.BILINEAR)
        chosen = _resize(chosen, shape, Image.Resampling.NEAREST)
    return image, chosen


def _resize(array: UInt8Array, shape: tuple[int, ...], resample: Image.Resampling) -> UInt8Array:
    height, width = shape
    return np.asarray(Image.fromarray(array).resize((width, height), resample), dtype=np.uint8)
