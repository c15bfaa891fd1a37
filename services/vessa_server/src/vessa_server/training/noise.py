"""Smooth random fields: the raw material of made-up tasks and of augmentation."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


@cache
def _spline_basis(coarse: int, size: int) -> FloatArray:
    """Values of the ``coarse + 3`` cubic B-splines at ``size`` positions, (size, coarse + 3)."""
    position = (np.arange(size, dtype=np.float32) + 0.5) * coarse / size
    cell = np.floor(position).astype(np.intp)
    u = position - cell
    weights = (
        (1 - u) ** 3 / 6,
        (3 * u**3 - 6 * u**2 + 4) / 6,
        (-3 * u**3 + 3 * u**2 + 3 * u + 1) / 6,
        u**3 / 6,
    )
    basis = np.zeros((size, coarse + 3), dtype=np.float32)
    for offset, weight in enumerate(weights):
        basis[np.arange(size), cell + offset] = weight
    return basis


def smooth_noise(rng: np.random.Generator, size: int, cells: float) -> FloatArray:
    """Noise with about ``cells`` bumps along each side, zero mean and unit deviation."""
    coarse = max(2, round(cells))
    knots = rng.standard_normal((coarse + 3, coarse + 3)).astype(np.float32)
    basis = _spline_basis(coarse, size)
    out = basis @ knots @ basis.T
    scaled: FloatArray = (out - out.mean()) / (out.std() + np.float32(1e-6))
    return scaled
