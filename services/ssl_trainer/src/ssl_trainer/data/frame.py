"""Frames: how a native slice, the student's canvas and an augmented view relate.

A view is the canvas resampled through one affine map, so that anything known in the native
frame, VESSA's answer above all, is warped into a view by the same map.

Axes: B batch, C channels, H W space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_trainer.config import AugmentationConfig
from vessa_client import AnyArray, Region

LOW_PERCENTILE, HIGH_PERCENTILE = 0.5, 99.5
# Black and white of a windowed image.
BYTES = (0.0, 255.0)
# Slices with more pixels than this along a pixel of the canvas are reduced to RESIDUAL of them:
# bilinear sampling takes the mean of two, and skips the others (aliasing).
MOST_PIXELS, RESIDUAL = 3, 2
QUARTER = math.pi / 2
# Share of a slice from which a region of interest is all of it.
MOST_OF_SLICE = 0.7
Window = tuple[float, float]
Theta = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class WeakTransform:
    """Weak geometric augmentation: rotation in radians, zoom, mirroring, shift of the side."""

    angle: float = 0.0
    zoom: float = 1.0
    mirror_x: bool = False
    mirror_y: bool = False
    shift_x: float = 0.0
    shift_y: float = 0.0

    @staticmethod
    def draw(rng: np.random.Generator, config: AugmentationConfig) -> WeakTransform:
        """A random one."""
        turn, flipped = math.radians(config.rotation_degrees), -1
        if config.quarter_turns and rng.uniform() < config.quarter_turns:
            angle, flipped = QUARTER * int(rng.integers(4)), int(rng.integers(2))
        else:
            angle = float(rng.uniform(-turn, turn)) if rng.uniform() < 0.5 else 0.0
        return WeakTransform(
            angle=angle,
            zoom=float(np.exp(rng.uniform(*np.log([config.zoom_min, config.zoom_max])))),
            mirror_x=bool(config.mirror and rng.uniform() < 0.5) != (flipped == 0),
            mirror_y=bool(config.mirror and rng.uniform() < 0.5) != (flipped == 1),
            shift_x=float(rng.uniform(-config.shift, config.shift)),
            shift_y=float(rng.uniform(-config.shift, config.shift)),
        )


IDENTITY = WeakTransform()


@dataclass(frozen=True)
class Roi:
    """Region of interest: a square of a slice, its centre and side in pixels.

    Turned counter-clockwise by ``quarter_turns`` it lies as the annotated images do. It may reach
    beyond the slice.
    """

    row: float
    column: float
    side: float
    quarter_turns: int = 0

    @staticmethod
    def whole(shape: tuple[int, ...], quarter_turns: int = 0) -> Roi:
        """The slice centred, its longer side filling the square."""
        height, width = shape[:2]
        return Roi(height / 2, width / 2, float(max(height, width)), quarter_turns)

    @staticmethod
    def around(shown_HW: npt.NDArray[np.bool_], margin: float, quarter_turns: int = 0) -> Roi:
        """``margin`` times as large as what is shown, which is something."""
        rows, columns = (np.flatnonzero(shown_HW.any(axis=axis)) for axis in (1, 0))
        tall, wide = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
        centre = float(rows[0] + tall / 2), float(columns[0] + wide / 2)
        return Roi(*centre, margin * max(tall, wide), quarter_turns)

    def scaled(self, factor: float) -> Roi:
        """About the same centre, so many times as large."""
        return replace(self, side=factor * self.side)

    def or_whole(self, shape: tuple[int, ...]) -> Roi:
        """The whole slice where this is most of it, so that nothing at its borders is lost."""
        height, width = shape[:2]
        if self.side**2 < MOST_OF_SLICE * height * width:
            return self
        return Roi.whole(shape, self.quarter_turns)

    def region(self, shape: tuple[int, ...]) -> Region:
        """The part of it that is in the slice, in whole pixels; the whole slice where none is."""
        spans = [
            (max(0, math.floor(centre - self.side / 2)), min(n, math.ceil(centre + self.side / 2)))
            for centre, n in zip((self.row, self.column), shape[:2], strict=True)
        ]
        if any(low >= high for low, high in spans):
            spans = [(0, n) for n in shape[:2]]
        (top, bottom), (left, right) = spans
        return Region(
            top=top,
            left=left,
            height=bottom - top,
            width=right - left,
            quarter_turns=self.quarter_turns,
        )

    def contains(self, grid_HW2: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Which of the places of a :func:`grid` are in it, (H, W) bool."""
        height, width = shape[:2]
        columns, rows = (grid_HW2[..., i] + 1 for i in (0, 1))
        beside = (columns * width / 2 - self.column).abs(), (rows * height / 2 - self.row).abs()
        return torch.maximum(*beside) <= self.side / 2


# Region of interest of each series; of one that is not in it the whole slices are seen.
Regions = Mapping[str, Roi]


def theta(
    shape: tuple[int, ...], roi: Roi | None = None, transform: WeakTransform = IDENTITY
) -> Theta:
    """2x3 map from view to slice, in ``grid_sample`` coordinates.

    Without a transform it is the canonical canvas: the region of interest, upright, fills it.

    Args:
        shape: of the slice.
        roi: that of the slice; None for the whole slice.
        transform: of the view.
    """
    height, width = shape[:2]
    roi = roi or Roi.whole(shape)
    flip = np.diag([-1.0 if transform.mirror_x else 1.0, -1.0 if transform.mirror_y else 1.0])
    centre = np.array([2 * roi.column / width - 1, 2 * roi.row / height - 1])
    scale = np.diag([roi.side / width, roi.side / height]) / transform.zoom
    scale = scale @ _rotation(roi.quarter_turns * QUARTER)
    shift = centre + scale @ np.array([transform.shift_x, transform.shift_y])
    return np.concatenate([scale @ _rotation(transform.angle) @ flip, shift[:, None]], axis=1)


def _rotation(angle: float) -> Theta:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])


def windowed(image: AnyArray, limits: Window | None) -> AnyArray:
    """The image as student and VESSA see it: of 8 bits by a run's window, without one as it is.

    Voxels without a number become black.
    """
    if limits is None:
        known = np.isfinite(image)
        if known.all():
            return image
        black = np.min(image, where=known, initial=0)
        return np.asarray(np.where(known, image, black), image.dtype)
    low, high = limits
    unit = (np.nan_to_num(image.astype(np.float32), nan=low) - low) / (high - low)
    grey: AnyArray = np.rint(255 * unit.clip(0, 1)).astype(np.uint8)
    return grey


def size_of_whole(shape: tuple[int, ...], size: int, roi: Roi | None) -> int:
    """Side of the whole slice where its region of interest fills a canvas of ``size``."""
    return size if roi is None else max(1, round(size * max(shape[:2]) / roi.side))


def unit(image: AnyArray, size: int, limits: Window | None, roi: Roi | None = None) -> Tensor:
    """A slice as it is in its file, in [0, 1] by a run's window or by percentiles, (1, H, W).

    Reduced where its region of interest is much larger than the canvas of ``size``.
    """
    shown = windowed(image, limits)
    scaled = to_unit_range(shown, window(shown, roi) if limits is None else BYTES)
    whole = size_of_whole(image.shape, size, roi)
    return reduced(scaled, whole) if is_large(image.shape, whole) else scaled


def shape_of_unit(shape: tuple[int, ...], size: int, roi: Roi | None) -> tuple[int, ...]:
    """Height and width of :func:`unit`."""
    whole = size_of_whole(shape, size, roi)
    return _reduced(shape[:2], whole) if is_large(shape, whole) else shape[:2]


def is_large(shape: tuple[int, ...], size: int) -> bool:
    """Whether a slice is :func:`reduced` before it is sampled onto a canvas of ``size``."""
    return max(shape[:2]) > MOST_PIXELS * size


def reduced(maps_CHW: Tensor, size: int) -> Tensor:
    """Maps of a large slice with twice the pixels of a canvas of ``size`` along the longer side.

    Area means, so that a slice of any resolution is the same to a student. Borders, and so
    ``grid_sample`` coordinates, stay where they are.
    """
    before = maps_CHW.shape[1:]
    rows, columns = (_shares(*pair) for pair in zip(before, _reduced(before, size), strict=True))
    return rows @ maps_CHW @ columns.T


def _reduced(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    scale = RESIDUAL * size / max(shape)
    return tuple(max(1, round(n * scale)) for n in shape)


def _shares(before: int, after: int) -> Tensor:
    """Part of each of ``after`` pixels that each of ``before`` covers, (after, before)."""
    edges = np.linspace(0, before, after + 1)[:, None]
    pixels = np.arange(before)[None]
    overlap = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return torch.from_numpy((overlap.clip(0) * after / before).astype(np.float32))


def grey(image: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """(H, W) float32; colour becomes its mean."""
    array = np.asarray(image, dtype=np.float32)
    return array.mean(axis=2) if array.ndim == 3 else array


def window(image: AnyArray, roi: Roi | None = None) -> Window:
    """Intensities that become black and white: robust percentiles of the region of interest.

    Bright fat far from the structures would make them dark.
    """
    if roi is not None:
        seen = roi.region(image.shape)
        image = image[seen.top : seen.top + seen.height, seen.left : seen.left + seen.width]
    low, high = np.percentile(grey(image), [LOW_PERCENTILE, HIGH_PERCENTILE])
    return float(low), float(high)


def to_unit_range(image: npt.NDArray[np.generic], limits: Window | None = None) -> Tensor:
    """(1, H, W) float32 in [0, 1]; ``limits`` is the image's :func:`window` where it is known."""
    low, high = limits or window(image)
    scaled = (grey(image) - np.float32(low)) / np.float32(high - low if high > low else 1)
    return torch.from_numpy(np.clip(scaled, 0, 1))[None]


def grid(matrix: Theta, size: int) -> Tensor:
    """Where in its slice each pixel of a view is, (size, size, 2)."""
    return grids(torch.from_numpy(matrix).float()[None], size)[0]


def grids(theta_B23: Tensor, size: int) -> Tensor:
    """The same for a batch, (B, size, size, 2).

    In full precision: ``affine_grid`` is a matrix product, which autocast and TF32 round.
    """
    along = (2 * torch.arange(size, device=theta_B23.device) + 1) / size - 1
    of_x_B12, of_y_B12, at_zero_B12 = theta_B23[:, None].unbind(dim=-1)
    rows_BH12 = of_y_B12[:, None] * along[:, None, None] + at_zero_B12[:, None]
    return rows_BH12 + of_x_B12[:, None] * along[:, None]


def sample(maps_CHW: Tensor, grid_HW2: Tensor, *, mode: str) -> Tensor:
    """Maps of a slice in a view, (C, H, W) of the grid; outside of the slice it is 0."""
    return F.grid_sample(maps_CHW[None], grid_HW2[None], mode=mode, align_corners=False)[0]


def resample(maps_CHW: Tensor, matrix: Theta, size: int, *, mode: str) -> Tensor:
    """Maps of a slice in a view, (C, size, size); outside of the slice it is 0."""
    return sample(maps_CHW, grid(matrix, size), mode=mode)


def restore(
    maps_CHW: Tensor,
    shape: tuple[int, ...],
    roi: Roi | None = None,
    transform: WeakTransform = IDENTITY,
) -> Tensor:
    """Maps of a view back in the slice's frame, (C, H, W); 0 where the view does not show it."""
    height, width = shape[:2]
    square = np.concatenate([theta(shape, roi, transform), [[0.0, 0.0, 1.0]]])
    inverse = np.linalg.inv(square)[:2]
    theta_123 = torch.from_numpy(inverse).float()[None]
    back = F.affine_grid(theta_123, [1, 1, height, width], align_corners=False)
    maps = F.grid_sample(
        maps_CHW[None], back, mode="bilinear", padding_mode="border", align_corners=False
    )[0]
    return maps * (back[0].abs().amax(dim=-1) <= 1)
