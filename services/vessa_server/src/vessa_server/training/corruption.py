"""Corrupted student masks: what an early student would send, from mild to useless.

Axes: P image-class pairs, H W space.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vessa_server.training.noise import smooth_noise

# Share of nearly right masks.
MILD = 0.3


def corrupt(mask_HW: Tensor, other_HW: Tensor, rng: np.random.Generator) -> Tensor:
    """Corrupt one ground-truth mask.

    Borders move by a smooth random field (erosion, dilation, missing pieces and false
    islands come of it), the mask shifts, and another class leaks in.

    Args:
        mask_HW: the class, 0 or 1.
        other_HW: all other annotated classes, 0 or 1.
        rng: source of randomness.

    Returns:
        (H, W) probabilities, or hard 0 and 1 in half of the cases.
    """
    side = mask_HW.shape[-1]
    # Good students too: nearly right masks teach to leave them alone.
    mild = rng.uniform() < MILD
    severity = float(rng.uniform(0, 0.12)) if mild else float(rng.uniform()) ** 1.5
    source = mask_HW.float()
    draw = 1.0 if mild else rng.uniform()
    if draw < 0.08:
        source = torch.zeros_like(source)
    elif draw < 0.16:
        source = other_HW.float()
    elif draw < 0.35:
        leak = torch.from_numpy(smooth_noise(rng, side, 3.0)) > rng.uniform(-0.5, 1.0)
        source = torch.maximum(source, other_HW.float() * leak)
    shift = np.rint(rng.normal(0, 0.05 * side * severity, 2)).astype(int)
    source = torch.roll(source, (int(shift[0]), int(shift[1])), (0, 1))
    width = 2 * int(rng.integers(0 if mild else 1, 2 if mild else 3 + int(4 * severity))) + 1
    soft = F.avg_pool2d(source[None, None], width, stride=1, padding=width // 2)[0, 0]
    field = torch.from_numpy(smooth_noise(rng, side, float(rng.uniform(3, 10))))
    grow = float(rng.normal(0, 0.05 if mild else 0.15))
    logit = 8.0 * (soft - 0.5 + grow + 0.45 * severity * field)
    if rng.uniform() < 0.5:
        hard: Tensor = (logit > 0).float()
        return hard
    return torch.sigmoid(logit * float(rng.uniform(0.5, 2.0)))
