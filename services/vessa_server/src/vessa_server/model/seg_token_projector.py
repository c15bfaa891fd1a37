"""From the hidden state of ``<SEG>`` to what the mask decoder reads (LISA; VESSA, section 3).

Axes: P image-class pairs, T visual tokens of the target, D features, H W space at stride 8.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vessa_server.model.precision import in_full_precision

# Logit of the map at the start of training: little of an image is foreground.
MAP_BIAS = -2.0


class SegTokenProjector(nn.Module):
    """Two-layer MLP from the VLM's hidden size to the prompt encoder's."""

    def __init__(self, hidden_size: int, d_model: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(hidden_size),
            nn.Linear(hidden_size, d_model),
            nn.GELU(),
            nn.Linear(d_model, d_model),
        )

    def forward(self, hidden_PD: Tensor) -> Tensor:
        """Return (P, 1, d_model): one token for each image-class pair."""
        out: Tensor = self.layers(hidden_PD)
        return out[:, None]


class SegMap(nn.Module):
    """Where ``<SEG>`` points: its dot products with the target, as mask logits at stride 8.

    With the VLM's own visual tokens, which have read text and template, and with the matching
    features, which are finer. One token among many prompts is easily ignored by a decoder; a
    map has a loss of its own, so text and template overlay are learnt from every pixel.
    """

    def __init__(self, hidden_size: int, feature_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.coarse_query = nn.Linear(hidden_size, feature_dim)
        self.coarse_key = nn.Linear(hidden_size, feature_dim)
        self.fine_query = nn.Linear(hidden_size, feature_dim)
        self.bias = nn.Parameter(torch.tensor(MAP_BIAS))

    def forward(self, seg_PD: Tensor, target_PTD: Tensor, match_PDHW: Tensor) -> Tensor:
        """Return logits, (P, 1, H, W); the tokens are a square grid, row by row."""
        seg_PD, target_PTD = self.norm(seg_PD), self.norm(target_PTD)
        key_PTD = self.coarse_key(target_PTD)
        coarse_PT = _products("pd,ptd->pt", self.coarse_query(seg_PD), key_PTD)
        side = math.isqrt(coarse_PT.shape[1])
        coarse_P1HW = (coarse_PT / math.sqrt(key_PTD.shape[-1])).view(-1, 1, side, side)
        size = match_PDHW.shape[-2:]
        coarse_P1HW = F.interpolate(coarse_P1HW, size=size, mode="bilinear")
        fine_PHW = _products("pd,pdhw->phw", self.fine_query(seg_PD), match_PDHW)
        return coarse_P1HW + fine_PHW[:, None] + self.bias


@in_full_precision
def _products(equation: str, one: Tensor, other: Tensor) -> Tensor:
    return torch.einsum(equation, one, other)
