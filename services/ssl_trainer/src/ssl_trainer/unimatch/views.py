"""Strong views: colour jitter, blur and CutMix. Axes: B batch, H W space."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

AREA_RANGE, ASPECT_RANGE = (0.02, 0.4), (0.3, 1 / 0.3)
JITTER = 0.5


def jitter(image_B1HW: Tensor, rng: np.random.Generator) -> Tensor:
    """Brightness and contrast (probability 0.8) and Gaussian blur (0.5) for each image."""
    out = []
    for image in image_B1HW:
        view = image
        if rng.uniform() < 0.8:
            gain, lift = rng.uniform(1 - JITTER, 1 + JITTER, 2)
            mean = view.mean()
            view = ((view - mean) * float(gain) + mean) * float(lift)
        if rng.uniform() < 0.5:
            view = gaussian_blur(view, float(rng.uniform(0.1, 2.0)))
        out.append(view)
    return torch.stack(out)


def gaussian_blur(image_1HW: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian blur with reflected borders."""
    radius = max(1, math.ceil(3 * sigma))
    x = torch.arange(-radius, radius + 1, dtype=image_1HW.dtype)
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(image_1HW[None], (radius, radius, radius, radius), mode="reflect")
    rows = F.conv2d(padded, kernel.view(1, 1, -1, 1))
    return F.conv2d(rows, kernel.view(1, 1, 1, -1))[0]


@dataclass(frozen=True)
class CutMix:
    """Boxes of a batch: ``inside_BHW`` is where image ``partner_B`` is pasted."""

    inside_BHW: Tensor
    partner_B: Tensor

    @staticmethod
    def draw(batch: int, size: int, probability: float, rng: np.random.Generator) -> CutMix:
        """A box for each image with ``probability``; the partner is another image."""
        inside = torch.zeros(batch, size, size, dtype=torch.bool)
        for index in range(batch):
            if rng.uniform() < probability:
                top, left, height, width = random_box(size, rng)
                inside[index, top : top + height, left : left + width] = True
        # A rotation by a random amount gives every image another one as partner.
        turn = int(rng.integers(1, batch)) if batch > 1 else 0
        return CutMix(inside, (torch.arange(batch) + turn) % batch)

    def mix(self, maps: Tensor) -> Tensor:
        """Mix images (B, C, H, W) or maps (B, H, W)."""
        inside = self.inside_BHW if maps.ndim == 3 else self.inside_BHW[:, None]
        return torch.where(inside, maps[self.partner_B], maps)


def random_box(size: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a box inside of the square."""
    while True:
        area = rng.uniform(*AREA_RANGE) * size * size
        aspect = math.exp(rng.uniform(math.log(ASPECT_RANGE[0]), math.log(ASPECT_RANGE[1])))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < height <= size and 0 < width <= size:
            top = int(rng.integers(0, size - height + 1))
            left = int(rng.integers(0, size - width + 1))
            return top, left, height, width
