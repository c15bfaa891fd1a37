"""Finds where in a whole slice the structures are, and how it is turned.

Axes: B batch, C channels, Z slices, H W space.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_trainer.data import frame
from ssl_trainer.data.frame import Roi
from ssl_trainer.models import unet

# Side of the canvas, which shows a whole slice: a place needs few pixels.
SIZE = 64
CHANNELS = (16, 16, 32, 64, 64, 16)
# Share of the highest probability from which a pixel is inside.
ENOUGH = 0.5


class Locator(nn.Module):
    """A small U-Net: inside or outside of the region of interest, and the quarter turns to it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = unet.build_unet(CHANNELS, 1)
        self.turn = nn.Linear(CHANNELS[4], 4)

    def forward(self, image_B1HW: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of being inside, (B, 1, H, W), and of 0 to 3 quarter turns, (B, 4)."""
        features = unet.encode(self.net, image_B1HW)
        inside_B1HW = unet.decode(self.net, features)
        # How it is turned is seen where it is.
        coarse = features[4]
        height, width = coarse.shape[2:]
        inside = torch.sigmoid(inside_B1HW.detach())
        weight = F.adaptive_avg_pool2d(inside, (height, width))
        pooled_BC = (coarse * weight).sum((2, 3)) / (weight.sum((2, 3)) + 1e-3)
        return inside_B1HW, self.turn(pooled_BC)

    @torch.no_grad()
    def locate(self, slices: Sequence[Tensor], shape: tuple[int, ...]) -> Roi:
        """The region that slices of one volume agree on.

        Args:
            slices: in [0, 1], (1, H, W) each; large ones may have been reduced.
            shape: of each before that, in whose pixels the region is.
        """
        shape = shape[:2]
        heat_1HW, turns_4 = torch.zeros(1, *shape), torch.zeros(4)
        device = self.turn.weight.device
        for turns in range(4):  # what it sees in a turned slice counts as much
            whole = Roi.whole(shape, turns)
            matrix = frame.theta(shape, whole)
            views = [frame.resample(item, matrix, SIZE, mode="bilinear") for item in slices]
            inside, logits = self(torch.stack(views).to(device))
            heat_1HW += frame.restore(torch.sigmoid(inside).mean(0).cpu(), shape, whole)
            turns_4 += torch.log_softmax(logits.cpu(), dim=1).mean(0).roll(turns)
        return square(heat_1HW[0], int(turns_4.argmax())).or_whole(shape)


def square(heat_HW: Tensor, quarter_turns: int) -> Roi:
    """A square where the heat is: its centre, and as large as what of it is in the slice."""
    shown_HW = heat_HW >= ENOUGH * heat_HW.max()
    rows, columns = torch.nonzero(shown_HW, as_tuple=True)
    weight = heat_HW[rows, columns]
    row, column = ((weight * at).sum() / weight.sum() + 0.5 for at in (rows, columns))
    side = float(len(rows)) ** 0.5
    height, width = heat_HW.shape
    # Where a square goes on beyond the slice, its other extent is still whole.
    if columns.min() == 0 or columns.max() == width - 1:
        side = max(side, _extent(rows))
    if rows.min() == 0 or rows.max() == height - 1:
        side = max(side, _extent(columns))
    return Roi(float(row), float(column), side, quarter_turns)


def _extent(at: Tensor) -> float:
    """Of lines that have at least half as many pixels as the fullest one."""
    counts = torch.bincount(at)
    return float((counts >= counts.max() / 2).sum())
