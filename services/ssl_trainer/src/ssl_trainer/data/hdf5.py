"""Images in HDF5 as SSL4MIS keeps them: ``image`` and ``label`` in one file, listed by split.

``train.list``, ``val.list`` and ``test.list`` name files without their suffix:
``data/patient001_frame01.h5`` (volumes of ACDC), ``data/slices/patient001_frame01_slice_1.h5``
(its slices), ``NAME/mri_norm2.h5`` (left atria). Slices of volumes are along their short axis,
unless another is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from ssl_trainer.config import ConfigError
from vessa_client import AnyArray, files
from vessa_common.layouts import Item

SUFFIX = ".h5"
IMAGE, LABEL = "image", "label"
_LISTS = {
    "train": ("train.list", "train_slices.list"),
    "val": ("val.list",),
    "test": ("test.list",),
}
_PLACES = (
    "data/{}.h5",
    "data/slices/{}.h5",
    "{}.h5",
    "{}/mri_norm2.h5",
    "2018LA_Seg_Training Set/{}/mri_norm2.h5",
)


def is_here(root: Path) -> bool:
    """Whether a folder has lists of training cases."""
    return any((root / name).is_file() for name in _LISTS["train"])


def find(root: Path, split: Literal["train", "val", "test"]) -> list[Item]:
    """The listed files of a split, by name; none where it has no list.

    Raises:
        ConfigError: a listed file is missing.
    """
    file = next((root / n for n in _LISTS[split] if (root / n).is_file()), None)
    if file is None:
        return []
    items = []
    for line in file.read_text().splitlines():
        name = line.strip().removesuffix(SUFFIX)
        if not name:
            continue
        places = [root / place.format(name) for place in _PLACES]
        image = next((place for place in places if place.is_file()), None)
        if image is None:
            raise ConfigError(
                f"data.root: {file} names {name!r}; no file {places[0]} or {places[1]}"
            )
        items.append(Item(name, image, image if _has_labels(image) else None))
    return sorted(items, key=lambda item: item.name)


def acquired_axis(path: Path) -> int | None:
    """Slicing axis that :func:`read` takes for a volume; None of a slice.

    Raises:
        ConfigError: h5py is not installed.
        FileError: damaged, or without an image.
    """
    with _opened(path) as stream:
        shape = _array(stream, path, IMAGE).shape
    return _short_axis(shape) if len(shape) == 3 else None


def read(path: Path, key: str, axis: int | None = None) -> files.ImageFile:
    """``image`` or ``label`` of a file: a slice, or a volume with its slicing axis.

    Args:
        path: the file.
        key: of the array.
        axis: along which a volume is sliced; by default its short one.

    Raises:
        ConfigError: h5py is not installed.
        FileError: damaged, or without such an array.
    """
    with _opened(path) as stream, files.reading(path):
        pixels: AnyArray = np.asarray(_array(stream, path, key))
    if pixels.ndim not in (2, 3):
        raise files.FileError(f"{path}: {key} has shape {pixels.shape}, expected two or three axes")
    if key == LABEL:
        pixels = files.integers(path, pixels)
    if pixels.ndim == 2:
        return files.ImageFile(path, pixels, None, None)
    return files.ImageFile(path, pixels, _short_axis(pixels.shape) if axis is None else axis, None)


def _short_axis(shape: tuple[int, ...]) -> int:
    return files.slice_axis(shape, (1.0, 1.0, 1.0))


def _array(stream: Any, path: Path, key: str) -> Any:
    if key not in stream:
        raise files.FileError(f"{path}: no array {key!r}, expected {IMAGE!r} and {LABEL!r}")
    found = stream[key]
    if not hasattr(found, "shape") or found.dtype.kind not in "biuf" or not found.size:
        raise files.FileError(f"{path}: {key!r} is no array of numbers")
    return found


def _has_labels(path: Path) -> bool:
    with _opened(path) as stream:
        return LABEL in stream


def _opened(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ConfigError(
            f"data.root: {path} is HDF5, which needs h5py: pip install 'ssl-trainer[h5]'"
        ) from error
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise files.FileError(f"{path}: cannot be read ({error})") from error
