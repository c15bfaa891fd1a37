"""Maps of slices of different sizes as one tensor, so that a whole batch is sampled at once.

Axes: B batch, C channels, H W space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vessa_common.transfer import send


@dataclass(frozen=True)
class Planes:
    """Maps of slices in the upper left corner of planes of one size, with zeros beside them.

    Attributes:
        maps_BCHW: of any type.
        shares_B2: part of the plane's width and height that the slice has.
    """

    maps_BCHW: Tensor
    shares_B2: Tensor

    @staticmethod
    def of(maps: Sequence[Tensor]) -> Planes:
        """Planes that are large enough for maps of (C, H, W) each."""
        sizes_B2 = torch.tensor([[m.shape[2], m.shape[1]] for m in maps])
        width, height = sizes_B2.amax(dim=0).tolist()
        out = maps[0].new_zeros(len(maps), len(maps[0]), height, width)
        for plane, own in zip(out, maps, strict=True):
            plane[:, : own.shape[1], : own.shape[2]] = own
        return Planes(out, sizes_B2 / sizes_B2.amax(dim=0))

    def to(self, device: torch.device) -> Planes:
        """On another device; nobody waits for it."""
        return Planes(send(self.maps_BCHW, device), send(self.shares_B2, device))

    def select(self, row_B: Tensor) -> Planes:
        """Some of them."""
        return Planes(self.maps_BCHW.index_select(0, row_B), self.shares_B2.index_select(0, row_B))

    def sample(self, grid_BHW2: Tensor, *, mode: str) -> Tensor:
        """Maps in views, (B, C, H, W) float32 of the grids; outside of a slice they are 0.

        Args:
            grid_BHW2: where in its slice each pixel of a view is, as :func:`frame.grid` has it.
            mode: ``bilinear`` or ``nearest``.
        """
        within = (grid_BHW2 + 1) * self.shares_B2[:, None, None] - 1
        return F.grid_sample(self.maps_BCHW.float(), within, mode=mode, align_corners=False)
