"""Strong variation of a labelled slice. Axes: H W space."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_trainer.config import RichAugmentationConfig
from ssl_trainer.data import frame


def vary(
    image_1HW: Tensor,
    labels_1HW: Tensor,
    size: int,
    config: RichAugmentationConfig,
    rng: np.random.Generator,
    roi: frame.Roi | None = None,
) -> tuple[Tensor, Tensor]:
    """Move, deform and recolour a slice in [0, 1], which may be reduced, and its labels.

    Returns:
        (1, size, size) in about [0, 1], and labels (1, size, size).
    """
    transform = frame.WeakTransform.draw(rng, config.geometry)
    matrix = frame.theta(labels_1HW.shape[1:], roi, transform)
    # Displacements are in the coordinates of the grid, whose side is 2.
    field = 2 * config.elastic * float(rng.uniform()) * smooth_noise(2, size, rng)
    grid = frame.grid(matrix, size) + field.permute(1, 2, 0)
    image = frame.sample(image_1HW, grid, mode="bilinear")
    labels = frame.sample(labels_1HW, grid, mode="nearest")
    for value in labels.unique().tolist():
        if value:
            soft = F.avg_pool2d((labels == value).float()[None], 3, stride=1, padding=1)[0]
            image = image + soft * float(rng.normal(0, config.structure_shift))
    image = image.clamp(0, 1) ** float(np.exp(rng.normal(0, config.gamma)))
    image = image * torch.exp(config.bias * float(rng.uniform()) * smooth_noise(1, size, rng))
    grain = torch.from_numpy(rng.standard_normal(image.shape).astype(np.float32))
    image = image + config.noise * float(rng.uniform()) * grain
    return image * float(rng.uniform(0.8, 1.2)) + float(rng.normal(0, 0.05)), labels


def smooth_noise(channels: int, size: int, rng: np.random.Generator) -> Tensor:
    """Fields with 2 to 5 bumps along each side and unit deviation, (channels, size, size)."""
    cells = int(rng.integers(3, 7))
    knots = torch.from_numpy(rng.standard_normal((1, channels, cells, cells)).astype(np.float32))
    out = F.interpolate(knots, size=(size, size), mode="bicubic", align_corners=True)[0]
    return out / out.std().clamp(min=1e-6)
