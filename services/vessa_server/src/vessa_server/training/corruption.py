"""Corrupted student masks: what an early student would send, from mild to useless.

Axes: P image-class pairs, H W space.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vessa_server.training.draws import Draws
from vessa_server.training.noise import smooth_noise

# Share of nearly right masks.
MILD = 0.3
MAX_CELLS = 10
LEAK_CELLS = 3
WIDTHS = (1, 3, 5, 9, 13)


def corrupt(mask_PHW: Tensor, other_PHW: Tensor, draws: Draws) -> Tensor:
    """Corrupt ground-truth masks.

    Borders move by a smooth random field (erosion, dilation, missing pieces and false
    islands come of it), the mask shifts, and other classes leak in.

    Args:
        mask_PHW: the class, 0 or 1.
        other_PHW: all other annotated classes, 0 or 1.
        draws: source of randomness.

    Returns:
        (P, H, W) probabilities, or hard 0 and 1 in half of the cases.
    """
    count, side, _ = mask_PHW.shape
    chance = draws.uniform(8, count)
    # Good students too: nearly right masks teach to leave them alone.
    mild = chance[0] < MILD
    severity = torch.where(mild, 0.12 * chance[1], chance[1] ** 1.5)
    source = _other_structures(mask_PHW, other_PHW, mild, chance[2], draws)
    source = _shifted(source, draws.normal(2, count) * 0.05 * side * severity)
    soft = _softened(source, mild, severity, chance[3])
    field = smooth_noise(draws, 3 + 7 * chance[4], side, MAX_CELLS)
    grow = draws.normal(count) * torch.where(mild, 0.05, 0.15)
    logit = 8.0 * (soft - 0.5 + _at(grow) + 0.45 * _at(severity) * field)
    soft = torch.sigmoid(logit * _at(0.5 + 1.5 * chance[5]))
    return torch.where(_at(chance[6]) < 0.5, (logit > 0).float(), soft)


def _at(values_P: Tensor) -> Tensor:
    return values_P[:, None, None]


def _other_structures(
    mask: Tensor, other: Tensor, mild: Tensor, chance_P: Tensor, draws: Draws
) -> Tensor:
    """Nothing, another structure, or one that leaks in, in about a third of the cases."""
    count, side, _ = mask.shape
    field = smooth_noise(draws, mask.new_full((count,), float(LEAK_CELLS)), side, LEAK_CELLS)
    leak = (field > _at(-0.5 + 1.5 * draws.uniform(count))).float()
    draw = torch.where(mild, torch.ones_like(chance_P), chance_P)
    source = torch.where(_at(draw) < 0.35, torch.maximum(mask, other * leak), mask)
    source = torch.where(_at(draw) < 0.16, other, source)
    return torch.where(_at(draw) < 0.08, torch.zeros_like(mask), source)


def _shifted(source_PHW: Tensor, shift_2P: Tensor) -> Tensor:
    """Rolled by whole pixels, each on its own."""
    side = source_PHW.shape[-1]
    places = torch.arange(side, device=source_PHW.device)
    down, right = shift_2P.round().long()
    rows = (places[None] - down[:, None]) % side
    columns = (places[None] - right[:, None]) % side
    rolled = source_PHW.gather(1, rows[:, :, None].expand_as(source_PHW))
    return rolled.gather(2, columns[:, None, :].expand_as(source_PHW))


def _softened(source: Tensor, mild: Tensor, severity: Tensor, chance_P: Tensor) -> Tensor:
    """Averages over windows; the more damaged, the wider."""
    widest = torch.where(mild, torch.ones_like(severity), 1 + 3.99 * severity)
    which = torch.where(mild, 2 * chance_P, 1 + chance_P * widest).long().clamp(max=len(WIDTHS) - 1)
    out = source
    for index, width in enumerate(WIDTHS[1:], start=1):
        averaged = F.avg_pool2d(source[:, None], width, stride=1, padding=width // 2)[:, 0]
        out = torch.where(_at(which) == index, averaged, out)
    return out
