"""Complementary channel dropout (UniMatch V2, section 3.3). Axes: B batch, C channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def complementary_masks(
    batch: int, channels: Sequence[int], probability: float, generator: torch.Generator
) -> tuple[list[Tensor], list[Tensor]]:
    """Masks for the two strong views, (B, C) each.

    One view keeps the channels that the other drops, scaled by 2, so that the masks of the
    two views add up to 2. A random ``1 - probability`` of the images is left as it is (1 in
    both views).

    Returns:
        Masks of the first and of the second view, one for each number of ``channels``.
    """
    untouched = torch.randperm(batch, generator=generator)[: int(batch * (1 - probability))]
    first, second = [], []
    for count in channels:
        keep = torch.bernoulli(torch.full((batch, count), 0.5), generator=generator) * 2
        drop = 2 - keep
        keep[untouched] = 1
        drop[untouched] = 1
        first.append(keep)
        second.append(drop)
    return first, second
