"""Augmentation of Stage 1 images: one spatial transform and one intensity transform.

Axes: C channels, H W space.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vessa_client import UInt8Array
from vessa_server.model.preprocess import FOCUS_MARGIN, to_unit_range
from vessa_server.training.noise import smooth_noise
from vessa_server.training.tasks import LabelledImage

# A second look is never much wider than the image, and never blows up a few pixels.
LOOK_ZOOM = (0.7, 8.0)


@dataclass(frozen=True, kw_only=True)
class SpatialTransform:
    """Rotation (radians), zoom, mirroring, centre of the view, elastic strength.

    ``centre`` is x, y in the image, from -1 to 1; ``elastic`` a fraction of the canvas.
    """

    angle: float
    zoom: float
    mirror: bool
    centre: tuple[float, float]
    elastic: float

    @staticmethod
    def group(
        rng: np.random.Generator,
        *,
        mirror: bool,
        zoom_range: tuple[float, float],
        focus: tuple[float, float] = (0.0, 0.0),
    ) -> SpatialTransform:
        """The transform that all images of a task share.

        ``focus`` is a point, from -1 to 1, that stays in view however strong the zoom.
        """
        turn = rng.uniform(-math.pi, math.pi) if mirror else rng.uniform(-0.25, 0.25)
        zoom = float(np.exp(rng.uniform(*np.log(zoom_range))))
        pull = max(0.0, 1.0 - 1.0 / zoom)
        return SpatialTransform(
            angle=float(turn) if rng.uniform() < 0.7 else 0.0,
            zoom=zoom,
            mirror=bool(mirror and rng.uniform() < 0.5),
            centre=(
                pull * focus[0] + float(rng.uniform(-0.15, 0.15)) / zoom,
                pull * focus[1] + float(rng.uniform(-0.15, 0.15)) / zoom,
            ),
            elastic=float(rng.uniform(0.0, 0.04)),
        )

    def vary(
        self, rng: np.random.Generator, *, strength: float = 1.0, turn: bool = False
    ) -> SpatialTransform:
        """The transform of one image: the shared one, changed by ``strength``.

        ``turn`` adds a rotation by any angle.
        """
        own_turn = rng.uniform(-math.pi, math.pi) if turn else 0.0
        return SpatialTransform(
            angle=self.angle + float(rng.normal(0, 0.2 * strength) + own_turn),
            zoom=self.zoom * float(np.exp(rng.normal(0, 0.15 * strength))),
            mirror=self.mirror,
            centre=(
                self.centre[0] + float(rng.normal(0, 0.06 * strength)) / self.zoom,
                self.centre[1] + float(rng.normal(0, 0.06 * strength)) / self.zoom,
            ),
            elastic=self.elastic * strength,
        )

    def look_at(self, labels: UInt8Array, rng: np.random.Generator) -> SpatialTransform:
        """The transform with place and zoom of a second look at what is annotated.

        The window is that of :func:`vessa_server.model.preprocess.focus` around the truth,
        changed at random as one around a first prediction would be.
        """
        rows, columns = np.flatnonzero(labels.any(axis=1)), np.flatnonzero(labels.any(axis=0))
        if not rows.size:
            return self
        height, width = labels.shape
        extent = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
        doubt = 0.4 if rng.uniform() < 0.15 else 0.15
        side = FOCUS_MARGIN * extent * float(np.exp(rng.normal(0, doubt)))
        zoom = float(np.clip(max(height, width) / side, *LOOK_ZOOM))
        return replace(
            self,
            zoom=zoom,
            centre=(
                (columns[0] + columns[-1] + 1) / width - 1 + float(rng.normal(0, 0.1)) / zoom,
                (rows[0] + rows[-1] + 1) / height - 1 + float(rng.normal(0, 0.1)) / zoom,
            ),
        )


def focus_point(labels: UInt8Array, rng: np.random.Generator) -> tuple[float, float]:
    """x, y from -1 to 1 of a random annotated pixel; the middle where there is none."""
    annotated = np.flatnonzero(labels)
    if not annotated.size:
        return 0.0, 0.0
    row, column = divmod(int(rng.choice(annotated)), labels.shape[1])
    height, width = labels.shape
    return 2 * (column + 0.5) / width - 1, 2 * (row + 0.5) / height - 1


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
            [to_x * cos * flip, -to_x * sin, transform.centre[0]],
            [to_y * sin * flip, to_y * cos, transform.centre[1]],
        ],
        dtype=torch.float32,
    )
    grid = F.affine_grid(theta[None], [1, 3, size, size], align_corners=False)
    if transform.elastic:
        field = np.stack([smooth_noise(rng, size, rng.uniform(2, 5)) for _ in range(2)], axis=-1)
        grid = grid + transform.elastic / transform.zoom * torch.from_numpy(field)[None]
    image = F.grid_sample(unit_3HW[None], grid, mode="bilinear", align_corners=False)[0]
    labels = torch.from_numpy(item.labels.astype(np.float32))[None, None]
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
        bias = torch.from_numpy(smooth_noise(rng, out.shape[-1], 2.0))
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
