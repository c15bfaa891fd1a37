"""Intensities of images in any unit, scaled to [0, 1]. Axes: C channels, H W space."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

LOW_PERCENTILE, HIGH_PERCENTILE = 0.5, 99.5
# Beyond these, products and differences of fp32 numbers might overflow, or vanish.
FLOAT32_LIMITS = (2.0**-100, 2.0**100)
# Pixels counted at once: their 64-bit indices fit a cache.
COUNTED_AT_ONCE = 2**17


def unit_range(image: npt.NDArray[np.generic], window: tuple[float, float] | None = None) -> Tensor:
    """Scale an image to [0, 1] by a window, or by robust percentiles.

    By percentiles the unit does not matter: multiplied by any factor, or shifted, an image gives
    the same up to rounding. A constant image gives zeros.

    Args:
        image: (H, W) or (H, W, 3), any real dtype, finite.
        window: intensities that become 0 and 1, the first below the second.

    Returns:
        (1, H, W) or (3, H, W), float32.
    """
    planes: npt.NDArray[Any] = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    if window is not None:
        low, high = window
        seen = np.clip(planes.astype(np.float64, order="C"), low, high)
        return torch.from_numpy(((seen - low) / (high - low)).astype(np.float32))
    if not _fits_float32(planes):
        planes = _near_one(planes)
    low, high = _limits(planes)
    dtype = np.dtype(np.float64 if planes.dtype == np.float64 else np.float32)
    scaled = planes.astype(dtype, order="C")
    scaled -= dtype.type(low)
    scale = dtype.type(high - low)
    np.clip(scaled, 0.0, scale, out=scaled)
    if scale > 0:
        scaled /= scale
    return torch.from_numpy(scaled.astype(np.float32, copy=False))


def percentiles(planes: npt.NDArray[Any]) -> tuple[float, float]:
    """What ``numpy.percentile`` gives for the two percentiles of the pixels in floating point.

    Integers of 8 and 16 bits are counted, which takes a tenth of the time of sorting.
    """
    if planes.dtype.kind not in "iu" or planes.dtype.itemsize > 2:
        low, high = np.percentile(planes, [LOW_PERCENTILE, HIGH_PERCENTILE])
        return float(low), float(high)
    least = int(planes.min())
    up_to = _counts(planes, least).cumsum()
    last = int(up_to[-1]) - 1

    def at(percentile: float) -> float:
        rank = last * (percentile / 100)
        below = math.floor(rank)
        ranks = (below, min(below + 1, last))
        one, other = (least + int(i) for i in np.searchsorted(up_to, ranks, side="right"))
        share = rank - below
        # As numpy rounds it.
        return one + (other - one) * share if share < 0.5 else other - (other - one) * (1 - share)

    return at(LOW_PERCENTILE), at(HIGH_PERCENTILE)


def _limits(planes: npt.NDArray[Any]) -> tuple[float, float]:
    """What becomes 0 and 1: percentiles, or where these are one, the darkest and brightest."""
    low, high = percentiles(planes)
    if high <= low:
        return float(planes.min()), float(planes.max())
    return low, high


def _fits_float32(planes: npt.NDArray[Any]) -> bool:
    """Whether fp32 holds the pixels exactly, and what is computed of them safely."""
    kind, size = planes.dtype.kind, planes.dtype.itemsize
    if kind == "f" and size == 4:
        smallest, largest = FLOAT32_LIMITS
        return smallest < max(-float(planes.min()), float(planes.max())) < largest
    return size <= 2


def _near_one(planes: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Multiplied by the power of two with which the largest is in [0.5, 1), exactly."""
    wide = planes.astype(np.float64)
    _, exponent = math.frexp(max(-float(wide.min()), float(wide.max())))
    return np.ldexp(wide, -exponent)


def _counts(planes: npt.NDArray[Any], least: int) -> npt.NDArray[np.int64]:
    """How many pixels have each value from ``least`` on."""
    flat = np.ascontiguousarray(planes).reshape(-1)
    counts = np.zeros(int(flat.max()) - least + 1, np.int64)
    for start in range(0, flat.size, COUNTED_AT_ONCE):
        values = np.subtract(flat[start : start + COUNTED_AT_ONCE], least, dtype=np.intp)
        counts += np.bincount(values, minlength=counts.size)
    return counts
