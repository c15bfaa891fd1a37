"""Real data for Stage 1: annotated volumes and pictures in the layouts that people use."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from PIL import Image

from vessa_client import AnyArray, UInt8Array, files
from vessa_common import layouts, patients
from vessa_common.layouts import DataError, Item
from vessa_server.model.preprocess import HIGH_PERCENTILE, LOW_PERCENTILE
from vessa_server.training.config import SourceConfig
from vessa_server.training.pack import PackedSource
from vessa_server.training.tasks import MAX_CLASSES, ClassText, PackedSlice

HELD_OUT_EVERY = 10
# Of fewer than these none can be spared.
MIN_SUBJECTS_TO_HOLD_OUT = 3
# Pixels that are this much longer than wide, or wider than long, are resampled to squares.
ANISOTROPY = 1.1
MAX_VOXELS = 2**31
# Beyond both ends of the annotated part, as a share of it: there the right answer is empty.
MARGIN = 0.15
# Difference of affines, as a share of a voxel, up to which two files are of the same place.
SAME_PLACE = 0.05

log = logging.getLogger(__name__)


def read(config: SourceConfig, root: Path) -> tuple[PackedSource, list[PackedSlice]]:
    """Read a data set.

    Some subjects are held out, see :func:`hold_out`.

    Raises:
        DataError: the folder is missing, has no labelled images, or is not as described.
    """
    folder = root / config.folder
    listing = layouts.find(config.layout, folder, config.channel)
    annotated = [item for item in listing.items if item.labels is not None]
    if not annotated:
        raise DataError(f"data: no labelled images of layout {config.layout!r} in {folder}")
    texts = tuple(config.classes) or tuple(ClassText(name=n) for n in listing.names.values())
    if not texts:
        raise DataError(f"data: {folder}: classes are not named; set `classes`")
    if len(texts) > MAX_CLASSES:
        raise DataError(f"data: {folder}: {len(texts)} classes, expected at most {MAX_CLASSES}")
    values = list(listing.names) if listing.names else None
    subjects = _subjects(annotated, config)
    held_out = hold_out(subjects)
    if not held_out:
        log.warning(
            "data: %s: %d subjects, none of them held out: it has no val/ curve",
            config.folder,
            len(set(subjects)),
        )
    slices = []
    for item, subject in zip(annotated, subjects, strict=True):
        arrays = _Arrays(item, config, values)
        slices += list(_slices(arrays, config, subject, held_out=subject in held_out))
    if not any(item.labels.any() for item in slices):
        raise DataError(f"data: {folder}: no image shows any of its {len(texts)} classes")
    source = PackedSource(
        name=config.folder.split("/", maxsplit=1)[0],
        texts=texts,
        weight=config.weight,
        mirror=config.mirror,
    )
    return source, slices


def hold_out(subjects: Sequence[str]) -> frozenset[str]:
    """Subjects that are kept out of training, with all their images.

    Every tenth in the order of the images; of three to nine the last; of fewer none.
    """
    different = list(dict.fromkeys(subjects))
    if len(different) < MIN_SUBJECTS_TO_HOLD_OUT:
        return frozenset()
    return frozenset(different[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY] or different[-1:])


def _subjects(items: Sequence[Item], config: SourceConfig) -> list[str]:
    """Whom each image is of."""
    if config.subject_pattern is None:
        return patients.names([item.name for item in items])
    found = []
    for item in items:
        subject = config.subject_of(item.name)
        if subject is None:
            raise DataError(
                f"data: {config.folder}: subject_pattern {config.subject_pattern!r} does not match "
                f"{item.name!r}"
            )
        found.append(subject)
    return found


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
    """Image as uint8 and labels as class indices of one annotated image."""

    def __init__(self, item: Item, config: SourceConfig, values: list[int] | None) -> None:
        assert item.labels is not None
        scan = _pixels(item.image, labels=False)
        marked = _pixels(item.labels, labels=True)
        self.spacing = config.spacing or scan.spacing
        image, labels = scan.values, marked.values
        if labels.ndim == 3 and image.ndim == 4:
            if config.channel >= image.shape[3]:
                raise DataError(
                    f"data: {item.image} has {image.shape[3]} channels, `channel` is "
                    f"{config.channel}, expected less"
                )
            image = image[..., config.channel]
        if labels.ndim not in (2, 3) or image.shape[: labels.ndim] != labels.shape:
            raise DataError(
                f"data: {item.image} is {image.shape}, its labels are {labels.shape}; expected "
                "labels of two or three axes, and of the image's shape"
            )
        scan.check_place_of(marked)
        self.image = _to_bytes(image, config.window, item.image)
        self.labels = _to_indices(labels, config, values, item.labels)


@dataclass(frozen=True)
class _Pixels:
    """What a file holds; ``affine`` is None where it does not say where the voxels lie."""

    file: Path
    values: AnyArray
    spacing: tuple[float, ...] = (1.0, 1.0)
    affine: npt.NDArray[np.float64] | None = None

    def check_place_of(self, labels: _Pixels) -> None:
        """Refuse labels that are stored turned or mirrored, or lie somewhere else."""
        if self.affine is None or labels.affine is None:
            return
        if not np.allclose(self.affine, labels.affine, atol=SAME_PLACE * max(self.spacing)):
            raise DataError(
                f"data: {labels.file} lies elsewhere than {self.file}: their affines are "
                f"{labels.affine[:3].round(2).tolist()} and {self.affine[:3].round(2).tolist()}; "
                "resample the labels onto the image"
            )


def _pixels(file: Path, *, labels: bool) -> _Pixels:
    """Read a file; volumes may have modalities on a fourth axis."""
    if not file.name.lower().endswith(files.NIFTI_SUFFIXES):
        return _Pixels(file, files.read(file, labels=labels).pixels)
    try:
        image = nib.load(file)
        if math.prod(image.shape) > MAX_VOXELS:
            raise DataError(f"data: {file} has shape {image.shape}, more than {MAX_VOXELS} voxels")
        spacing = tuple(float(z) for z in image.header.get_zooms()[:3])
        placed = int(image.header["sform_code"]) > 0 or int(image.header["qform_code"]) > 0
        return _Pixels(file, np.asarray(image.dataobj), spacing, image.affine if placed else None)
    except (OSError, EOFError, ImageFileError) as error:
        raise DataError(f"data: {file} cannot be read: {error}") from error


def _to_bytes(image: AnyArray, window: tuple[float, float] | None, file: Path) -> UInt8Array:
    """To 0..255 by the window of intensities, or by percentiles; bytes stay as they are.

    Voxels without a number are black.
    """
    if window is None and image.dtype == np.uint8:
        return np.asarray(image, dtype=np.uint8)
    values = np.asarray(image, dtype=np.float32)
    known = np.isfinite(values)
    if not known.any():
        raise DataError(f"data: {file} has no voxel with a number")
    low, high = window or np.percentile(values[known], [LOW_PERCENTILE, HIGH_PERCENTILE])
    scaled = (np.where(known, values, low) - low) * (255.0 / (float(high - low) or 1.0))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _to_indices(
    labels: AnyArray, config: SourceConfig, values: list[int] | None, file: Path
) -> UInt8Array:
    if not np.allclose(labels, np.rint(labels), atol=1e-3):
        raise DataError(f"data: {file} has labels that are no whole numbers")
    whole = np.rint(labels).astype(np.int64)
    if config.binary:
        return np.asarray(whole > 0, dtype=np.uint8)
    if values is None:
        if whole.min() < 0 or whole.max() > len(config.classes):
            raise DataError(
                f"data: {file} has labels {whole.min()} to {whole.max()}, expected 0 to "
                f"{len(config.classes)}; for masks of 0 and 255 set `binary: true`"
            )
        return whole.astype(np.uint8)
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
