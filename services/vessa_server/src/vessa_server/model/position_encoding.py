"""Position encodings of SAM 2: computed once for each size and device, and in fp32.

Axes: B images, C channels, D features, H W space.
"""

from __future__ import annotations

import torch
from sam2.modeling.position_encoding import PositionEmbeddingRandom, PositionEmbeddingSine
from torch import Tensor

from vessa_server.model.precision import in_full_precision


class PositionEncoding(PositionEmbeddingSine):
    """Sines of rows and columns. SAM 2's own is copied from its first device at every call."""

    def __init__(self, channels: int) -> None:
        super().__init__(num_pos_feats=channels, warmup_cache=False)
        self._known: dict[tuple[torch.device, int, int], Tensor] = {}

    @torch.no_grad()
    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, D, H, W): one encoding, which all images share."""
        height, width = x_BCHW.shape[-2:]
        key = (x_BCHW.device, height, width)
        if key not in self._known:
            self.cache.clear()  # the parent's, which may hold it on another device
            self._known[key] = super().forward(x_BCHW[:1])[0]
        return self._known[key].expand(x_BCHW.shape[0], -1, -1, -1)


class RandomFrequencies(PositionEmbeddingRandom):
    """Phases of points at random frequencies, with the buffer of SAM 2's checkpoints."""

    @in_full_precision
    def _pe_encoding(self, coords: Tensor) -> Tensor:
        """Encode points in [0, 1], (..., 2); phases of many turns need more than eight bits."""
        encoded: Tensor = super()._pe_encoding(coords)
        return encoded
