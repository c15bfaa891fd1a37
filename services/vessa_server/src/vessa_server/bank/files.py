"""Image files of the bank: PNG where it is lossless, TIFF for everything else."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from vessa_client import AnyArray, InvalidRequestError, UInt8Array


def to_storable(image: AnyArray) -> AnyArray:
    """uint8 and uint16 as they are, any other real dtype as float32.

    Raises:
        InvalidRequestError: colour of another dtype than uint8.
    """
    if image.ndim == 3 and image.dtype != np.uint8:
        raise InvalidRequestError(
            f"image: colour of {image.dtype}, expected uint8 for (H, W, 3)", field="image"
        )
    if image.dtype in (np.uint8, np.uint16):
        return np.ascontiguousarray(image)
    return np.ascontiguousarray(image, dtype=np.float32)


def write_image(folder: Path, stem: str, image: AnyArray) -> None:
    """Write a storable image and sync it."""
    suffix = ".tiff" if image.dtype == np.float32 else ".png"
    _write(folder / (stem + suffix), Image.fromarray(image))


def write_labels(folder: Path, labels: UInt8Array) -> None:
    """Write a label map with visible colours; its values are the labels."""
    picture = Image.fromarray(labels, mode="P")
    picture.putpalette(
        [0, 0, 0, 230, 60, 60, 60, 200, 90, 70, 110, 240, 240, 200, 50] + [128] * 753
    )
    _write(folder / "labels.png", picture)


def read_image(folder: Path, stem: str) -> AnyArray:
    """Read what :func:`write_image` or :func:`write_labels` wrote.

    Raises:
        OSError: missing or damaged.
    """
    for suffix in (".png", ".tiff"):
        file = folder / (stem + suffix)
        if file.exists():
            with Image.open(file) as picture:
                array = np.asarray(picture)
            return array.astype(np.uint16) if array.dtype == np.int32 else array
    raise FileNotFoundError(f"no {stem}.png or {stem}.tiff in {folder}")


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(file: Path, picture: Image.Image) -> None:
    with file.open("wb") as stream:
        picture.save(stream, format="TIFF" if file.suffix == ".tiff" else "PNG")
        stream.flush()
        os.fsync(stream.fileno())
