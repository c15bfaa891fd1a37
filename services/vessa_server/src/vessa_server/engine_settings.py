"""Limits and sizes of the engine; known before the model is imported."""

from __future__ import annotations

from dataclasses import dataclass, field

from vessa_server.policy import PolicyConfig

MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Limits and sizes of the engine.

    Attributes:
        max_request_pixels: pixels times classes times slices of one request.
        fuse: run looks together, one forward each step; else each alone, so that an answer
            does not depend on its batch, bit for bit.
        max_batch: most looks that run together.
    """

    max_image_bytes: int = 64 * MIB
    max_image_side: int = 4096
    max_classes: int = 32
    max_request_pixels: int = 1 << 30
    default_top_k: int = 7
    max_top_k: int = 7
    image_store_bytes: int = 512 * MIB
    feature_bytes: int = 2048 * MIB
    template_bytes: int = 512 * MIB
    fuse: bool = False
    max_batch: int = 32
    policy: PolicyConfig = field(default_factory=PolicyConfig)

    def __post_init__(self) -> None:
        if not 1 <= self.default_top_k <= self.max_top_k:
            raise ValueError(
                f"default_top_k {self.default_top_k}: expected 1..max_top_k, {self.max_top_k}"
            )
