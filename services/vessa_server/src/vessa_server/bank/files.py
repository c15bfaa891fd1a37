"""Files of the bank: PNG where it is lossless, TIFF for everything else, all synced."""

from __future__ import annotations

import io
import os
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from vessa_client import AnyArray, InvalidRequestError, UInt8Array

PARTIAL_SUFFIX = ".partial"
# Pillow warns of larger files when it opens them, and refuses those of twice the size.
MAX_PIXELS = 1 << 26
# What float32 may lose of an image, as a share of its range: the model sees 8 to 12 bits.
MAX_LOSS = 1e-4


def to_storable(image: AnyArray) -> AnyArray:
    """uint8 and uint16 as they are, any other real dtype as float32.

    Raises:
        InvalidRequestError: shape or dtype cannot be stored, or float32 would lose detail.
    """
    if image.ndim != 2 and (image.ndim != 3 or image.shape[2] != 3):
        raise InvalidRequestError(
            f"image: shape {image.shape}, expected (H, W) or (H, W, 3)", field="image"
        )
    if image.ndim == 3 and image.dtype != np.uint8:
        raise InvalidRequestError(
            f"image: colour of {image.dtype}, expected uint8 for (H, W, 3)", field="image"
        )
    if image.shape[0] * image.shape[1] > MAX_PIXELS:
        raise InvalidRequestError(
            f"image: {image.shape[0]} x {image.shape[1]}, expected at most {MAX_PIXELS} pixels",
            field="image",
        )
    if image.dtype in (np.uint8, np.uint16):
        return np.ascontiguousarray(image)
    with np.errstate(all="ignore"):  # what overflows is lost
        stored = np.ascontiguousarray(image, dtype=np.float32)
        if image.size and image.dtype.itemsize > 2 and image.dtype != np.float32:
            _check_loss(image, stored)
    return stored


def _check_loss(image: AnyArray, stored: AnyArray) -> None:
    low, high = image.min().item(), image.max().item()
    # Large integers are rounded here, too.
    rounding = 2.0**-53 * max(abs(low), abs(high))
    lost = float(np.abs(np.subtract(stored, image, dtype=np.float64)).max()) + rounding
    if high > low and not lost <= MAX_LOSS * (high - low):
        raise InvalidRequestError(
            f"image: values {low:.10g}..{high:.10g} of {image.dtype}, expected a range that "
            "float32 holds; subtract what is common to all pixels",
            field="image",
        )


def encode_image(image: AnyArray) -> tuple[str, bytes]:
    """Suffix and content of the file of a storable image."""
    if image.dtype != np.float32:
        return ".png", _png(Image.fromarray(image))
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="TIFF")
    return ".tiff", stream.getvalue()


def encode_labels(labels: UInt8Array) -> bytes:
    """A label map with visible colours as PNG; its values are the labels."""
    picture = Image.fromarray(labels, mode="P")
    picture.putpalette(
        [0, 0, 0, 230, 60, 60, 60, 200, 90, 70, 110, 240, 240, 200, 50] + [128] * 753
    )
    return _png(picture)


def read_image(folder: Path, stem: str, size: tuple[int, int] | None = None) -> AnyArray:
    """Read an image or label map.

    Args:
        folder: of the template.
        stem: file name without suffix.
        size: expected height and width, compared before anything is decoded.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is damaged or of another size.
    """
    for suffix in (".png", ".tiff"):
        file = folder / (stem + suffix)
        if file.exists():
            return _decode(file, size)
    raise FileNotFoundError(f"no {stem}.png or {stem}.tiff in {folder}")


def write_file(file: Path, data: bytes) -> None:
    """Write a new file and sync it."""
    with file.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def replace_file(file: Path, data: bytes) -> None:
    """Replace a file at once or not at all; a failure leaves nothing behind."""
    partial = file.with_name(file.name + PARTIAL_SUFFIX)
    try:
        write_file(partial, data)
        os.replace(partial, file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _png(picture: Image.Image) -> bytes:
    # Run lengths: no larger than zlib's default, in a quarter of its time. In colour, grey
    # pictures repeat each value three times, which takes more than runs of one byte.
    strategy = zlib.Z_DEFAULT_STRATEGY if picture.mode == "RGB" else zlib.Z_RLE
    stream = io.BytesIO()
    picture.save(stream, format="PNG", compress_level=1, compress_type=strategy)
    return stream.getvalue()


def _decode(file: Path, size: tuple[int, int] | None) -> AnyArray:
    try:
        with Image.open(file) as picture:
            found = (picture.height, picture.width)
            if size is not None and found != size:
                raise ValueError(f"{file.name} is {found}, expected {size}")
            array = np.asarray(picture)
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow has a kind for each way in which a file is damaged
        raise ValueError(f"{file}: {error}") from error
    return array.astype(np.uint16) if array.dtype == np.int32 else array
