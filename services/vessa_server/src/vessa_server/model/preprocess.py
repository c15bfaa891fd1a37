"""From a user's image to the model's square canvas and back, without losing geometry.

The longer side is scaled to the canvas; the rest is padded at the bottom and right, so that
pixel (0, 0) stays where it was. Axes: B batch, C channels or classes, H W space.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from vessa_client import InvalidRequestError, Region
from vessa_server.model import intensity
from vessa_server.model.config import VessaConfig

# Bump when the numbers change: it is part of every cache key.
PREPROCESSING_VERSION = "4"
LOW_PERCENTILE, HIGH_PERCENTILE = intensity.LOW_PERCENTILE, intensity.HIGH_PERCENTILE
# A second look: how much larger than the structures its window is, the smallest window in
# pixels, the share of the image above which there is no use in one, and the area of a part,
# relative to the largest, below which it is a speck.
FOCUS_MARGIN, MIN_FOCUS, FOCUS_BELOW, SPECK = 1.4, 24, 0.8, 0.1


@dataclass(frozen=True)
class Crop:
    """A square window of an image, in pixels; it may be cut off by the image's border."""

    top: int
    left: int
    height: int
    width: int

    def lies_in(self, height: int, width: int) -> bool:
        """Whether it has some pixels, all of them in an image of that size."""
        down = 0 <= self.top < self.top + self.height <= height
        return down and 0 <= self.left < self.left + self.width <= width

    def overlap(self, other: Crop) -> float:
        """Intersection over union of two windows."""
        bottom = min(self.top + self.height, other.top + other.height)
        right = min(self.left + self.width, other.left + other.width)
        tall, wide = bottom - max(self.top, other.top), right - max(self.left, other.left)
        shared = max(0, tall) * max(0, wide)
        return shared / (self.height * self.width + other.height * other.width - shared)


@dataclass(frozen=True)
class Canvas:
    """Placement of an image of ``height`` x ``width`` pixels on a square of side ``size``.

    With ``crop`` only that part of the image is on the canvas, turned by ``turns`` quarters
    counter-clockwise.
    """

    height: int
    width: int
    size: int
    crop: Crop | None = None
    turns: int = 0

    @property
    def window(self) -> Crop:
        """The part of the image that is on the canvas."""
        return self.crop or Crop(0, 0, self.height, self.width)

    @staticmethod
    def of(region: Region, height: int, width: int, size: int) -> Canvas:
        """The canvas that shows a region of an image.

        Raises:
            InvalidRequestError: it does not lie in the image, or is turned by more than three
                quarters.
        """
        crop = Crop(region.top, region.left, region.height, region.width)
        if not crop.lies_in(height, width):
            raise InvalidRequestError(
                f"region: {crop.height} x {crop.width} pixels from ({crop.top}, {crop.left}), "
                f"expected some pixels inside of the image's {height} x {width}",
                field="region",
            )
        if not 0 <= region.quarter_turns <= 3:
            raise InvalidRequestError(
                f"region.quarter_turns: {region.quarter_turns}, expected 0..3",
                field="region.quarter_turns",
            )
        return Canvas(height, width, size, crop, region.quarter_turns)

    @property
    def region(self) -> Region:
        """The window as clients are told."""
        window = self.window
        return Region(
            top=window.top,
            left=window.left,
            height=window.height,
            width=window.width,
            quarter_turns=self.turns,
        )

    @property
    def _turned(self) -> tuple[int, int]:
        """Height and width of the window after the turn."""
        sides = (self.window.height, self.window.width)
        return sides[::-1] if self.turns % 2 else sides

    @property
    def inner(self) -> tuple[int, int]:
        """Height and width of the turned window on the canvas."""
        height, width = self._turned
        scale = self.size / max(height, width)
        return (
            max(1, min(self.size, round(height * scale))),
            max(1, min(self.size, round(width * scale))),
        )

    def place(self, image_CHW: Tensor, *, mode: str = "bilinear") -> Tensor:
        """Scale and pad ``image_CHW`` to (C, size, size). ``mode``: bilinear, area or nearest."""
        inner, window = self.inner, self.window
        smooth = {"antialias": True, "align_corners": False} if mode == "bilinear" else {}
        rows = slice(window.top, window.top + window.height)
        columns = slice(window.left, window.left + window.width)
        seen = torch.rot90(image_CHW[:, rows, columns], self.turns, (1, 2))
        scaled = F.interpolate(seen[None], size=inner, mode=mode, **smooth)[0]
        return F.pad(scaled, (0, self.size - inner[1], 0, self.size - inner[0]))

    def restore(self, maps_CHW: Tensor, *, outside: float = 0.0) -> Tensor:
        """Bring maps of any square size back to (C, height, width).

        ``outside`` is the value of pixels that are not on the canvas.
        """
        side = maps_CHW.shape[-1]
        full = maps_CHW[None]
        if side != self.size:
            full = F.interpolate(full, size=(self.size, self.size), mode="bilinear")
        inner, window = self.inner, self.window
        cropped = full[..., : inner[0], : inner[1]]
        seen = F.interpolate(cropped, size=self._turned, mode="bilinear")[0]
        margins = (
            window.left,
            self.width - window.left - window.width,
            window.top,
            self.height - window.top - window.height,
        )
        return F.pad(torch.rot90(seen, -self.turns, (1, 2)), margins, value=outside)


@dataclass(frozen=True)
class Parts:
    """The connected parts of a mask without specks: how many, and their pixels."""

    count: int
    mask: npt.NDArray[np.bool_]


def parts(mask: npt.NDArray[np.bool_]) -> Parts:
    """Connected parts of ``mask``; specks far smaller than the largest part do not count."""
    labelled, count = ndimage.label(mask)
    areas = np.bincount(labelled.ravel(), minlength=count + 1)[1:]
    large = 1 + np.flatnonzero(areas >= SPECK * areas.max(initial=0))
    return Parts(len(large), np.isin(labelled, large))


def focus(mask: npt.NDArray[np.bool_]) -> Crop | None:
    """The window around what ``mask`` shows, :data:`FOCUS_MARGIN` times as large.

    Specks do not count. None where nothing is shown, or the window would be nearly the whole
    image.
    """
    found = parts(mask)
    if found.count == 0:
        return None
    kept = found.mask
    rows, columns = np.flatnonzero(kept.any(axis=1)), np.flatnonzero(kept.any(axis=0))
    height, width = mask.shape
    side = round(FOCUS_MARGIN * (max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1))
    side = max(side, MIN_FOCUS)
    if side > FOCUS_BELOW * max(height, width):
        return None
    tall, wide = min(side, height), min(side, width)
    top = int(np.clip((rows[0] + rows[-1] + 1 - tall) // 2, 0, height - tall))
    left = int(np.clip((columns[0] + columns[-1] + 1 - wide) // 2, 0, width - wide))
    return Crop(top, left, tall, wide)


def to_unit_range(
    image: npt.NDArray[np.generic], window: tuple[float, float] | None = None
) -> Tensor:
    """:func:`.intensity.unit_range` with three channels; those of grey images share memory."""
    return intensity.unit_range(image, window).expand(3, -1, -1)


def normalise(unit_B3HW: Tensor, config: VessaConfig) -> Tensor:
    """Centre and scale canvases in [0, 1] for the image encoder."""
    mean, std = (_constant((v,), unit_B3HW.device) for v in (config.pixel_mean, config.pixel_std))
    return (unit_B3HW - mean[0, :, None, None]) / std[0, :, None, None]


def vlm_view(unit_B3HW: Tensor, size: int) -> Tensor:
    """Canvases at the size that the VLM reads, still in [0, 1]."""
    if unit_B3HW.shape[-1] == size:
        return unit_B3HW
    return F.interpolate(
        unit_B3HW, size=(size, size), mode="bilinear", antialias=True, align_corners=False
    )


@dataclass(frozen=True)
class Tint:
    """A colour of the overlay and the word for it in the prompt."""

    name: str
    rgb: tuple[float, float, float]


# All structures of a template are tinted in one overlay; the text says which one is asked.
PALETTE = (
    Tint("red", (1.0, 0.1, 0.1)),
    Tint("green", (0.1, 0.9, 0.1)),
    Tint("blue", (0.1, 0.2, 1.0)),
    Tint("yellow", (1.0, 0.9, 0.1)),
    Tint("purple", (0.7, 0.1, 0.9)),
    Tint("cyan", (0.1, 0.9, 1.0)),
    Tint("orange", (1.0, 0.5, 0.1)),
    Tint("pink", (1.0, 0.6, 0.8)),
)
TINT_WEIGHT = 0.6


def tint_of(value: int) -> Tint:
    """The tint of label ``value``, from 1; more labels than tints share them."""
    return PALETTE[(value - 1) % len(PALETTE)]


def overlay(unit_B3HW: Tensor, labels_BHW: Tensor) -> Tensor:
    """Tint images with their label maps for the VLM."""
    tints = _constant(tuple(tint.rgb for tint in PALETTE), unit_B3HW.device)
    labels = labels_BHW.long()
    colour_B3HW = tints[(labels - 1).clamp(min=0) % len(PALETTE)].permute(0, 3, 1, 2)
    weight = TINT_WEIGHT * (labels > 0)[:, None].to(unit_B3HW.dtype)
    return unit_B3HW * (1 - weight) + colour_B3HW * weight


@functools.cache
def _constant(rows: tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    """A small table, sent to each device once: sending it waits for what the device does."""
    return torch.tensor(rows, device=device)
