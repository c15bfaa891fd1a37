"""From a user's image to the model's square canvas and back, without losing geometry.

The longer side is scaled to the canvas; the rest is padded at the bottom and right, so that
pixel (0, 0) stays where it was. Axes: B batch, C channels or classes, H W space.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from vessa_server.model.config import VessaConfig

# Bump when the numbers change: it is part of every cache key.
PREPROCESSING_VERSION = "1"
LOW_PERCENTILE, HIGH_PERCENTILE = 0.5, 99.5


@dataclass(frozen=True)
class Canvas:
    """Placement of an image of ``height`` x ``width`` pixels on a square of side ``size``."""

    height: int
    width: int
    size: int

    @property
    def inner(self) -> tuple[int, int]:
        """Height and width of the image on the canvas."""
        scale = self.size / max(self.height, self.width)
        return (
            max(1, min(self.size, round(self.height * scale))),
            max(1, min(self.size, round(self.width * scale))),
        )

    def place(self, image_CHW: Tensor, *, mode: str = "bilinear") -> Tensor:
        """Scale and pad ``image_CHW`` to (C, size, size). ``mode``: bilinear, area or nearest."""
        inner = self.inner
        smooth = {"antialias": True, "align_corners": False} if mode == "bilinear" else {}
        scaled = F.interpolate(image_CHW[None], size=inner, mode=mode, **smooth)[0]
        return F.pad(scaled, (0, self.size - inner[1], 0, self.size - inner[0]))

    def restore(self, maps_CHW: Tensor) -> Tensor:
        """Bring maps of any square size back to (C, height, width)."""
        side = maps_CHW.shape[-1]
        full = maps_CHW[None]
        if side != self.size:
            full = F.interpolate(full, size=(self.size, self.size), mode="bilinear")
        inner = self.inner
        cropped = full[..., : inner[0], : inner[1]]
        return F.interpolate(cropped, size=(self.height, self.width), mode="bilinear")[0]


def to_unit_range(image: npt.NDArray[np.generic]) -> Tensor:
    """Scale an image to [0, 1] by robust percentiles and give it three channels.

    Args:
        image: (H, W) or (H, W, 3), any real dtype, finite.

    Returns:
        (3, H, W) float32.
    """
    array = np.asarray(image, dtype=np.float32)
    low, high = np.percentile(array, [LOW_PERCENTILE, HIGH_PERCENTILE])
    if high <= low:
        low, high = float(array.min()), float(array.max())
    scale = np.float32(max(float(high - low), 1e-6))
    scaled = np.clip((array - np.float32(low)) / scale, 0.0, 1.0)
    if scaled.ndim == 2:
        scaled = np.repeat(scaled[..., None], 3, axis=2)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))


def normalise(unit_B3HW: Tensor, config: VessaConfig) -> Tensor:
    """Centre and scale canvases in [0, 1] for the image encoder."""
    mean, std = (
        unit_B3HW.new_tensor(v)[:, None, None] for v in (config.pixel_mean, config.pixel_std)
    )
    return (unit_B3HW - mean) / std


def vlm_view(unit_B3HW: Tensor, size: int) -> Tensor:
    """Canvases at the size that the VLM reads, still in [0, 1]."""
    if unit_B3HW.shape[-1] == size:
        return unit_B3HW
    return F.interpolate(
        unit_B3HW, size=(size, size), mode="bilinear", antialias=True, align_corners=False
    )


# The asked class is tinted red in the overlay, all other annotated classes blue.
ASKED_TINT, OTHER_TINT = (1.0, 0.1, 0.1), (0.1, 0.3, 1.0)
TINT_WEIGHT = 0.5


def overlay(unit_B3HW: Tensor, asked_B1HW: Tensor, other_B1HW: Tensor) -> Tensor:
    """Tint template images with their annotation for the VLM; masks are binary."""
    out = unit_B3HW
    for mask, tint in ((asked_B1HW, ASKED_TINT), (other_B1HW, OTHER_TINT)):
        colour = torch.tensor(tint, device=out.device)[None, :, None, None]
        weight = TINT_WEIGHT * mask
        out = out * (1 - weight) + colour * weight
    return out
