"""Smooth fields and white noise, from random numbers of the host. Axes: B batch, C channels, H W.

What the host draws is small: knots of the fields, and where in a table of noise an image's noise
begins. So a GPU sees what a CPU sees, and waits for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FEWEST_KNOTS, MOST_KNOTS = 3, 6
# Side of the table of white noise: 4 MB.
TABLE = 1024


@dataclass(frozen=True)
class Knots:
    """Of smooth fields: how many there are along each side, (B,), and their values, (B, C, 6, 6).

    Those beyond the number do not count.
    """

    count_B: Tensor
    value_BC66: Tensor

    @staticmethod
    def draw(rng: np.random.Generator, batch: int, channels: int = 1) -> Knots:
        """Three to six, with normal values."""
        shape = (batch, channels, MOST_KNOTS, MOST_KNOTS)
        return Knots(
            torch.from_numpy(rng.integers(FEWEST_KNOTS, MOST_KNOTS + 1, batch)),
            torch.from_numpy(rng.standard_normal(shape, np.float32)),
        )


def smooth(knots: Knots, size: int) -> Tensor:
    """Fields with 2 to 5 bumps along each side, and unit deviation over an image's channels.

    Returns:
        (B, C, size, size), bicubic between the knots.
    """
    weights_B1HK = _weights(size, knots.count_B.device).index_select(0, knots.count_B)[:, None]
    out = weights_B1HK @ knots.value_BC66 @ weights_B1HK.mT
    deviation_B = out.flatten(1).std(dim=1).clamp(min=1e-6)
    return out / deviation_B[:, None, None, None]


@lru_cache(maxsize=8)
def _weights(size: int, device: torch.device) -> Tensor:
    """Of each of so many knots in each place along a side, (7, size, 6)."""
    out = torch.zeros(MOST_KNOTS + 1, size, MOST_KNOTS)
    for count in range(FEWEST_KNOTS, MOST_KNOTS + 1):
        alone = torch.eye(count)[None, :, :, None]
        along = F.interpolate(alone, size=(size, 1), mode="bicubic", align_corners=True)
        out[count, :, :count] = along[0, :, :, 0].T
    return out.to(device)


def draw_places(rng: np.random.Generator, batch: int) -> Tensor:
    """Where in the table the white noise of each image begins, (B, 2)."""
    return torch.from_numpy(rng.integers(0, TABLE, (batch, 2)))


def white(place_B2: Tensor, size: int) -> Tensor:
    """White noise of unit deviation, (B, 1, size, size): a part of a table, which repeats."""
    along = torch.arange(size, device=place_B2.device)
    rows_BH, columns_BW = ((place_B2[:, axis, None] + along) % TABLE for axis in (0, 1))
    return _table(place_B2.device)[rows_BH[:, None, :, None], columns_BW[:, None, None, :]]


@lru_cache(maxsize=2)
def _table(device: torch.device) -> Tensor:
    drawn = np.random.default_rng(0).standard_normal((TABLE, TABLE), np.float32)
    return torch.from_numpy(drawn).to(device)
