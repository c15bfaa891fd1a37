"""Position encodings of SAM 2: computed once for each size and device.

Axes: B images, C channels, D features, H W space.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable

import torch
from sam2.modeling.position_encoding import PositionEmbeddingRandom, PositionEmbeddingSine
from torch import Tensor

from vessa_server.model.precision import in_full_precision


class EncodingsOfWeights:
    """Encodings that depend on a size and on weights, kept until these change.

    Weights that are trained have none kept: they change at each update.
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[tuple[tuple[Tensor, int], ...], Tensor]] = {}

    def get(
        self, size: tuple[int, int], weights: tuple[Tensor, ...], compute: Callable[[], Tensor]
    ) -> Tensor:
        """What ``compute`` makes of ``weights`` for ``size``."""
        if torch.compiler.is_compiling() or any(
            w.requires_grad or w.is_inference() for w in weights
        ):
            return compute()
        key = (size, torch.is_autocast_enabled(weights[0].device.type))
        known, encoding = self._kept.get(key, ((), None))
        now = tuple((weight, weight._version) for weight in weights)
        if encoding is None or not all(
            one is other and version == same
            for (one, version), (other, same) in zip(known, now, strict=True)
        ):
            # Not an inference tensor: it may be needed in training later on.
            with torch.inference_mode(False), torch.no_grad():
                encoding = compute()
            self._kept[key] = (now, encoding)
        return encoding


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
            with torch.inference_mode(False):
                self._known[key] = super().forward(x_BCHW[:1])[0]
        return self._known[key].expand(x_BCHW.shape[0], -1, -1, -1)


class RandomFrequencies(PositionEmbeddingRandom):
    """Phases of points at random frequencies, with the buffer of SAM 2's checkpoints."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self._grids = EncodingsOfWeights()

    def forward(self, size: tuple[int, int]) -> Tensor:
        """Encoding of the points of a grid, (D, H, W)."""
        weights = (self.positional_encoding_gaussian_matrix,)
        return self._grids.get(size, weights, functools.partial(super().forward, size))

    @in_full_precision
    def _pe_encoding(self, coords: Tensor) -> Tensor:
        """Encode points in [0, 1], (..., 2); phases of many turns need more than eight bits."""
        encoded: Tensor = super()._pe_encoding(coords)
        return encoded
