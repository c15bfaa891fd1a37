"""A runtime that computes nothing: empty masks at once, to measure what stands around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vessa_server.runtime.clock import StageClock
from vessa_server.runtime.protocol import (
    Bools,
    Conditioning,
    Decoded,
    Decoding,
    Described,
    Floats,
    Handle,
    RuntimeInfo,
)

CANVAS, DIM = 192, 8


@dataclass(frozen=True)
class Nothing:
    """A handle of nothing, for some classes."""

    classes: int = 0
    nbytes: int = 1024


class NoRuntime:
    """Follows :class:`Runtime`; all masks are empty."""

    info = RuntimeInfo(
        runtime="none", model_name="none", model_digest="0" * 64, parameters=0, canvas=CANVAS,
        feature_dim=DIM, device="cpu", dtype="float32", memory=0,
    )  # fmt: skip

    def encode(
        self, canvases: Sequence[Floats], clock: StageClock, *, read: bool = False
    ) -> list[Handle]:
        """Handles of nothing."""
        return [Nothing() for _ in canvases]

    def describe(
        self, images: Sequence[Handle], masks_HW: Sequence[Bools], clock: StageClock
    ) -> list[Described]:
        """Handles of nothing, embeddings of ones."""
        return [Described(Nothing(), np.ones((2, DIM), np.float32)) for _ in images]

    def index(self, embeddings_CN2D: Floats) -> Handle:
        """Remembers the shape."""
        return Nothing(len(embeddings_CN2D), embeddings_CN2D.shape[1])

    def similarity(
        self, images: Sequence[Handle], index: Handle, clock: StageClock
    ) -> list[Floats]:
        """All alike."""
        assert isinstance(index, Nothing)
        return [np.ones((index.classes, index.nbytes), np.float32) for _ in images]

    def prefix(self, overlays: Sequence[Floats], prompts: Sequence[str]) -> list[Handle]:
        """Handles of nothing."""
        return [Nothing() for _ in prompts]

    def condition(self, items: Sequence[Conditioning], clock: StageClock) -> list[Handle]:
        """Remembers the classes."""
        return [Nothing(len(item.templates)) for item in items]

    def decode(self, items: Sequence[Decoding], clock: StageClock) -> list[Decoded]:
        """Empty masks, of which it is sure."""
        half, found = CANVAS // 2, []
        for item in items:
            assert isinstance(item.conditioned, Nothing)
            shape = (item.conditioned.classes, half, half)
            found.append(Decoded(np.full(shape, -9, np.float32), np.ones(shape[0], np.float32)))
        return found

    def explain(
        self, image: Handle, prefixes: Sequence[Handle], tokens: int, clock: StageClock
    ) -> list[str]:
        """No words."""
        return ["" for _ in prefixes]

    def dump(self, handle: Handle) -> dict[str, Any]:
        """Nothing."""
        return {}

    def restore(self, kind: str, tensors: dict[str, Any]) -> Handle:
        """Nothing."""
        return Nothing()

    def close(self) -> None:
        """Nothing to release."""
