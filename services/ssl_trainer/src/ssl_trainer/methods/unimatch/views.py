"""Strong views: colour jitter, blur and CutMix, of all images at once.

What is drawn is drawn on the host. Axes: B batch, K taps, H W space.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

AREA_RANGE, ASPECT_RANGE = (0.02, 0.4), (0.3, 1 / 0.3)
JITTER = 0.5
# Deviation of the widest blur in pixels, and where it is cut off.
MOST_SIGMA, CUT_OFF = 2.0, 3.0
RADIUS = math.ceil(CUT_OFF * MOST_SIGMA)


@dataclass(frozen=True, kw_only=True)
class Jitter:
    """What is drawn for each image: contrast, brightness, and the kernel of its blur.

    Attributes:
        gain_B, lift_B: 1 for an image that keeps its intensities.
        kernel_BK: 1 in the middle for one that is not blurred.
    """

    gain_B: Tensor
    lift_B: Tensor
    kernel_BK: Tensor

    @staticmethod
    def draw(rng: np.random.Generator, batch: int) -> Jitter:
        """Intensities change with probability 0.8, and an image is blurred with 0.5."""
        changed_B1 = rng.uniform(size=(batch, 1)) < 0.8
        factors_B2 = np.where(changed_B1, rng.uniform(1 - JITTER, 1 + JITTER, (batch, 2)), 1.0)
        gain_B, lift_B = torch.from_numpy(factors_B2.astype(np.float32)).unbind(dim=1)
        blurred_B = rng.uniform(size=batch) < 0.5
        sigma_B = np.where(blurred_B, rng.uniform(0.1, MOST_SIGMA, batch), 0.0)
        return Jitter(gain_B=gain_B, lift_B=lift_B, kernel_BK=kernels(sigma_B))


def kernels(sigma_B: npt.NDArray[np.float64]) -> Tensor:
    """Gaussians of these deviations in pixels, (B, 2 * RADIUS + 1); 0 leaves an image as it is."""
    x_K = np.arange(-RADIUS, RADIUS + 1)
    sigma_B1 = sigma_B[:, None]
    reach_B1 = np.maximum(1, np.ceil(CUT_OFF * sigma_B1)) * (sigma_B1 > 0)
    kernel_BK = np.exp(-(x_K**2) / (2 * np.maximum(sigma_B1, 1e-3) ** 2)) * (abs(x_K) <= reach_B1)
    return torch.from_numpy((kernel_BK / kernel_BK.sum(axis=1, keepdims=True)).astype(np.float32))


def jittered(image_B1HW: Tensor, drawn: Jitter) -> Tensor:
    """Brightness, contrast and Gaussian blur."""
    gain, lift = (values[:, None, None, None] for values in (drawn.gain_B, drawn.lift_B))
    mean = image_B1HW.mean(dim=(1, 2, 3), keepdim=True)
    return blurred(((image_B1HW - mean) * gain + mean) * lift, drawn.kernel_BK)


def blurred(image_B1HW: Tensor, kernel_BK: Tensor) -> Tensor:
    """Separable blur with a kernel for each image and reflected borders.

    Sums of moved images: convolutions with a kernel for each image are up to five times as slow.
    """
    out = F.pad(image_B1HW, (RADIUS,) * 4, mode="reflect")
    taps_KB = kernel_BK.T[:, :, None, None, None]
    for axis in (2, 3):
        length = image_B1HW.shape[axis]
        moved = [out.narrow(axis, start, length) for start in range(len(taps_KB))]
        out = moved[0] * taps_KB[0]
        for tap, part in zip(taps_KB[1:], moved[1:], strict=True):
            out.addcmul_(part, tap)
    return out


@dataclass(frozen=True)
class CutMix:
    """Boxes of a batch: ``inside_BHW`` is where the image ``turn`` places further is pasted."""

    inside_BHW: Tensor
    turn: int

    def mix(self, maps: Tensor) -> Tensor:
        """Mix images (B, C, H, W) or maps (B, H, W)."""
        inside = self.inside_BHW if maps.ndim == 3 else self.inside_BHW[:, None]
        return torch.where(inside, maps.roll(-self.turn, dims=0), maps)


@dataclass(frozen=True)
class Boxes:
    """What is drawn of a CutMix: first and last rows and columns, (B, 4); and the partner."""

    edge_B4: Tensor
    turn: int

    @staticmethod
    def draw(batch: int, size: int, probability: float, rng: np.random.Generator) -> Boxes:
        """A box for each image with ``probability``; the partner is another image."""
        edge_B4 = np.zeros((batch, 4), np.int64)
        for edges in edge_B4:
            if rng.uniform() < probability:
                top, left, height, width = random_box(size, rng)
                edges[:] = top, top + height, left, left + width
        # A rotation by a random amount gives every image another one as partner.
        turn = int(rng.integers(1, batch)) if batch > 1 else 0
        return Boxes(torch.from_numpy(edge_B4), turn)

    def cutmix(self, size: int) -> CutMix:
        """On the device of the boxes."""
        along = torch.arange(size, device=self.edge_B4.device)
        top, bottom, left, right = self.edge_B4[:, :, None].unbind(dim=1)
        rows_BH, columns_BW = (along >= top) & (along < bottom), (along >= left) & (along < right)
        return CutMix(rows_BH[:, :, None] & columns_BW[:, None], self.turn)


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
