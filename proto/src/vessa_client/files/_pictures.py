"""PNG, JPEG and TIFF."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from vessa_client._types import AnyArray


def load(path: Path, *, labels: bool) -> AnyArray:
    """(H, W) or (H, W, 3); ``labels``: values of a palette, not its colours."""
    with Image.open(path) as picture:
        return np.asarray(_plain(picture, labels=labels))


def _plain(picture: Image.Image, *, labels: bool) -> Image.Image:
    if picture.mode in ("L", "RGB", "I", "I;16", "F") or (labels and picture.mode == "P"):
        return picture
    return picture.convert("L" if picture.mode == "1" else "RGB")
