"""An image to segment, scaled once however often it is looked at."""

from __future__ import annotations

import functools
from collections.abc import Hashable

from torch import Tensor

from vessa_client import AnyArray
from vessa_client._types import Window
from vessa_server.model.intensity import unit_range
from vessa_server.model.preprocess import Canvas
from vessa_server.runtime.protocol import Floats


class Scan:
    """Pixels with their digest, and the window in which they are seen; views of it in [0, 1]."""

    def __init__(self, sha256: str, pixels: AnyArray, window: Window | None = None) -> None:
        self.sha256 = sha256
        self.pixels = pixels
        self.window = window
        self.height, self.width = (int(n) for n in pixels.shape[:2])

    @property
    def key(self) -> Hashable:
        """All that views of it depend on."""
        return self.sha256, self.window

    def on(self, canvas: Canvas) -> Floats:
        """The image on a canvas, (1 or 3, H, W) in [0, 1]."""
        placed: Floats = canvas.place(self.unit).numpy()
        return placed

    @property
    def nbytes(self) -> int:
        """Bytes held, of the scaled image too where there is one."""
        unit: Tensor | None = self.__dict__.get("unit")
        return self.pixels.nbytes + (0 if unit is None else unit.nbytes)

    def prepare(self) -> None:
        """Scale it now: a large one takes a second."""
        _ = self.unit

    @functools.cached_property
    def unit(self) -> Tensor:
        """The image in [0, 1], (1 or 3, H, W)."""
        return unit_range(self.pixels, self.window)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scan) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)
