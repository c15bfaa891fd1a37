"""Label maps of users."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vessa_client._types import AnyArray
from vessa_client.files._errors import FileError


def integers(path: Path, pixels: AnyArray) -> AnyArray:
    """Labels as uint8, whatever numbers they are stored as.

    Raises:
        FileError: they are colours, or not in 0..255.
    """
    if pixels.dtype.names is not None:
        raise FileError(f"{path}: colours, expected labels 0, 1, 2, ... in one channel")
    with np.errstate(invalid="ignore"):
        rounded = np.rint(pixels)
    if not np.array_equal(rounded, pixels) or rounded.min() < 0 or rounded.max() > 255:
        raise FileError(f"{path}: expected integer labels in 0..255")
    return rounded.astype(np.uint8)
