"""PNG, JPEG and TIFF."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from vessa_client._types import AnyArray
from vessa_client.files._errors import FileError

# Of either byte order.
GREY = ("L", "I", "I;16", "I;16B", "I;16L", "F")


def load(path: Path, page: int | None, *, labels: bool) -> AnyArray:
    """(H, W) or (H, W, 3); ``labels``: values of a palette, not its colours.

    Raises:
        FileError: it is a TIFF of several pages, and none of them is chosen.
    """
    with Image.open(path) as picture:
        if picture.format == "TIFF":
            picture.seek(_chosen(path, getattr(picture, "n_frames", 1), page))
        return np.asarray(_plain(picture, labels=labels))


def _chosen(path: Path, count: int, page: int | None) -> int:
    """``page`` of a TIFF of so many."""
    if count == 1:
        return 0
    if page is None:
        raise FileError(f"{path}: {count} pages, choose one with --frame 0..{count - 1}")
    if page >= count:
        raise FileError(f"{path}: {count} pages, expected more than {page}")
    return page


def _plain(picture: Image.Image, *, labels: bool) -> Image.Image:
    if picture.mode in GREY or picture.mode == "RGB" or (labels and picture.mode == "P"):
        return picture
    return picture.convert("L" if picture.mode == "1" else "RGB")
