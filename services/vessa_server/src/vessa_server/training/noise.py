"""Smooth random fields: the raw material of made-up tasks and of augmentation.

Axes: N fields, H W space.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from vessa_server.training.draws import Draws


def smooth_noise(draws: Draws, cells_N: Tensor, size: int, most: int) -> Tensor:
    """Noise with about ``cells_N`` bumps along each side, zero mean and unit deviation.

    Args:
        draws: source of randomness.
        cells_N: number of cells of each field; rounded, and kept in 2..``most``.
        size: side of the fields, in pixels.
        most: cells that room is made for.

    Returns:
        (N, size, size).
    """
    knots_NKK = draws.normal(cells_N.shape[0], most + 3, most + 3)
    which_N = cells_N.round().long().clamp(2, most) - 2
    basis_NSK = _spline_bases(most, size, cells_N.device)[which_N]
    # Knots beyond a field's own have no weight in its basis.
    field = basis_NSK @ knots_NKK @ basis_NSK.transpose(1, 2)
    centred = field - field.mean(dim=(1, 2), keepdim=True)
    return centred / (centred.square().mean(dim=(1, 2), keepdim=True).sqrt() + 1e-6)


@cache
def _spline_bases(most: int, size: int, device: torch.device) -> Tensor:
    """Cubic B-splines at ``size`` positions for 2..``most`` cells, (most - 1, size, most + 3)."""
    bases = torch.zeros(most - 1, size, most + 3)
    rows = torch.arange(size)
    for cells in range(2, most + 1):
        position = (rows + 0.5) * cells / size
        cell = position.floor().long()
        u = position - cell
        weights = (
            (1 - u) ** 3 / 6,
            (3 * u**3 - 6 * u**2 + 4) / 6,
            (-3 * u**3 + 3 * u**2 + 3 * u + 1) / 6,
            u**3 / 6,
        )
        for offset, weight in enumerate(weights):
            bases[cells - 2, rows, cell + offset] = weight
    return bases.to(device)
