"""Variation of labelled slices. Axes: B batch, L labels, H W space.

What is drawn is drawn on the host, pixels are made on the device, of all slices at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_trainer.config import RichAugmentationConfig
from ssl_trainer.data import noise
from ssl_trainer.data.noise import Knots

# Deviation of the logarithm of the contrast's exponent where labelled slices are varied weakly.
WEAK_GAMMA = 0.2


@dataclass(frozen=True, kw_only=True)
class Variation:
    """What is drawn for each slice, (B,) unless said otherwise.

    Attributes:
        elastic_B, bend: strength of the displacement in coordinates of the grid, whose side is 2,
            and its fields, of x and y.
        shift_BL: what each label's pixels are brighter by.
        gamma_B: exponent of the contrast curve.
        bias_B, shade: strength of what brightens and darkens, and its field.
        noise_B, place_B2: strength of white noise, and which it is.
        gain_B, lift_B: of the result.
    """

    elastic_B: Tensor
    bend: Knots
    shift_BL: Tensor
    gamma_B: Tensor
    bias_B: Tensor
    shade: Knots
    noise_B: Tensor
    place_B2: Tensor
    gain_B: Tensor
    lift_B: Tensor


def draw(
    rng: np.random.Generator, config: RichAugmentationConfig, batch: int, labels: int
) -> Variation:
    """Draw the variation of as many slices, with label values below ``labels``."""

    def up_to(strength: float) -> Tensor:
        return _float(strength * rng.uniform(size=batch))

    shift_BL = rng.normal(0, config.structure_shift, (batch, labels))
    shift_BL[:, 0] = 0
    return Variation(
        elastic_B=up_to(2 * config.elastic),
        bend=Knots.draw(rng, batch, channels=2),
        shift_BL=_float(shift_BL),
        gamma_B=_float(np.exp(rng.normal(0, config.gamma, batch))),
        bias_B=up_to(config.bias),
        shade=Knots.draw(rng, batch),
        noise_B=up_to(config.noise),
        place_B2=noise.draw_places(rng, batch),
        gain_B=_float(rng.uniform(0.8, 1.2, batch)),
        lift_B=_float(rng.normal(0, 0.05, batch)),
    )


def bent(grid_BHW2: Tensor, variation: Variation) -> Tensor:
    """Grids with the displacement."""
    field_B2HW = noise.smooth(variation.bend, grid_BHW2.shape[1])
    return grid_BHW2 + variation.elastic_B[:, None, None, None] * field_B2HW.permute(0, 2, 3, 1)


def recoloured(image_B1HW: Tensor, labels_BHW: Tensor, variation: Variation) -> Tensor:
    """Views of slices in [0, 1] with other intensities, in about [0, 1]."""
    size = image_B1HW.shape[-1]
    shift_BHW = variation.shift_BL.gather(1, labels_BHW.flatten(1)).view(labels_BHW.shape)
    out = image_B1HW + F.avg_pool2d(shift_BHW[:, None], 3, stride=1, padding=1)
    out = out.clamp(0, 1) ** _over_pixels(variation.gamma_B)
    out = out * torch.exp(_over_pixels(variation.bias_B) * noise.smooth(variation.shade, size))
    out = out + _over_pixels(variation.noise_B) * noise.white(variation.place_B2, size)
    return out * _over_pixels(variation.gain_B) + _over_pixels(variation.lift_B)


def _over_pixels(values_B: Tensor) -> Tensor:
    return values_B[:, None, None, None]


def _float(values: npt.NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
