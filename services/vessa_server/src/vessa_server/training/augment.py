"""Augmentation of Stage 1 images: one spatial transform and one intensity transform.

Axes: C channels, H W space.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vessa_server.model.preprocess import to_unit_range
from vessa_server.training.sources import LabelledImage
from vessa_server.training.synthetic import smooth_noise


@dataclass(frozen=True, kw_only=True)
class SpatialTransform:
    """Rotation (radians), zoom, mirroring, shift (fraction of the side), elastic strength."""

    angle: float
    zoom: float
    mirror: bool
    shift: tuple[float, float]
    elastic: float

    @staticmethod
    def group(
        rng: np.random.Generator, *, mirror: bool, zoom_range: tuple[float, float]
    ) -> SpatialTransform:
        """The transform that all images of a task share."""
        turn = rng.uniform(-math.pi, math.pi) if mirror else rng.uniform(-0.25, 0.25)
        return SpatialTransform(
            angle=float(turn) if rng.uniform() < 0.7 else 0.0,
            zoom=float(np.exp(rng.uniform(*np.log(zoom_range)))),
            mirror=bool(mirror and rng.uniform() < 0.5),
            shift=(float(rng.uniform(-0.12, 0.12)), float(rng.uniform(-0.12, 0.12))),
            elastic=float(rng.uniform(0.0, 0.04)),
        )

    def vary(self, rng: np.random.Generator, *, strength: float = 1.0) -> SpatialTransform:
        """The transform of one image: the shared one, changed by ``strength``."""
        return SpatialTransform(
            angle=self.angle + float(rng.normal(0, 0.15 * strength)),
            zoom=self.zoom * float(np.exp(rng.normal(0, 0.12 * strength))),
            mirror=self.mirror,
            shift=(
                self.shift[0] + float(rng.normal(0, 0.04 * strength)),
                self.shift[1] + float(rng.normal(0, 0.04 * strength)),
            ),
            elastic=self.elastic * strength,
        )


def apply_spatial(
    item: LabelledImage, transform: SpatialTransform, size: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Resample an image and its labels onto a square canvas.

    Returns:
        (3, size, size) in [0, 1] and (size, size) uint8 labels.
    """
    unit_3HW = to_unit_range(item.image)
    height, width = unit_3HW.shape[1:]
    cos, sin = math.cos(transform.angle), math.sin(transform.angle)
    # Canvas coordinates are scaled so that the longer side spans [-1, 1] at zoom 1.
    longer = max(height, width)
    to_x, to_y = longer / width / transform.zoom, longer / height / transform.zoom
    flip = -1.0 if transform.mirror else 1.0
    theta = torch.tensor(
        [
            [to_x * cos * flip, -to_x * sin, to_x * transform.shift[0]],
            [to_y * sin * flip, to_y * cos, to_y * transform.shift[1]],
        ],
        dtype=torch.float32,
    )
    grid = F.affine_grid(theta[None], [1, 3, size, size], align_corners=False)
    if transform.elastic:
        field = np.stack([smooth_noise(rng, 64, rng.uniform(2, 5)) for _ in range(2)])
        offset = F.interpolate(
            torch.from_numpy(field)[None], size=(size, size), mode="bilinear", align_corners=False
        )
        grid = grid + transform.elastic * offset.permute(0, 2, 3, 1)
    image = F.grid_sample(unit_3HW[None], grid, mode="bilinear", align_corners=False)[0]
    labels = torch.from_numpy(np.ascontiguousarray(item.labels)).float()[None, None]
    warped = F.grid_sample(labels, grid, mode="nearest", align_corners=False)[0, 0]
    return image, warped.to(torch.uint8)


def shift_structures(
    image_3HW: Tensor, labels_HW: Tensor, strength: float, rng: np.random.Generator
) -> Tensor:
    """Change the intensity of each annotated structure on its own, with soft borders."""
    out = image_3HW
    for value in labels_HW.unique().tolist():
        if value == 0:
            continue
        mask = (labels_HW == value).float()[None, None]
        soft = F.avg_pool2d(mask, 3, stride=1, padding=1)[0]
        out = out + soft * float(rng.normal(0, strength))
    return out.clamp(0, 1)


def apply_intensity(image_3HW: Tensor, rng: np.random.Generator) -> Tensor:
    """Random contrast curve, inversion, bias field, blur and noise; stays in [0, 1]."""
    out = image_3HW.clamp(0, 1) ** float(np.exp(rng.normal(0, 0.35)))
    if rng.uniform() < 0.1:
        out = 1 - out
    if rng.uniform() < 0.4:
        field = torch.from_numpy(smooth_noise(rng, 64, 2.0))
        bias = F.interpolate(
            field[None, None], size=out.shape[1:], mode="bilinear", align_corners=False
        )[0]
        out = out * torch.exp(0.25 * bias)
    if rng.uniform() < 0.3:
        factor = float(rng.uniform(0.3, 0.8))
        small = F.interpolate(out[None], scale_factor=factor, mode="area")
        out = F.interpolate(small, size=out.shape[1:], mode="bilinear", align_corners=False)[0]
    if rng.uniform() < 0.5:
        noise = torch.from_numpy(rng.standard_normal(out.shape[1:]).astype(np.float32))
        out = out + float(rng.uniform(0, 0.06)) * noise
    gain, lift = float(rng.uniform(0.7, 1.3)), float(rng.normal(0, 0.08))
    return (out * gain + lift).clamp(0, 1)
