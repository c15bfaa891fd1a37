"""Typed configuration of the VESSA model; presets that fill it are in :mod:`.presets`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class HieraConfig:
    """Hiera trunk and FPN neck of SAM 2 (Ravi et al., 2024, section 4)."""

    embed_dim: int
    num_heads: int = 1
    stages: tuple[int, int, int, int]
    global_attention_blocks: tuple[int, ...]
    window_spec: tuple[int, int, int, int]
    background_size: tuple[int, int]
    fpn_top_down_levels: tuple[int, ...]
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        if max(self.global_attention_blocks) >= sum(self.stages):
            raise ValueError(
                f"global_attention_blocks {self.global_attention_blocks}: expected indices "
                f"below the number of blocks, {sum(self.stages)}"
            )

    @property
    def channels(self) -> list[int]:
        """Channels of the four stages, deepest first, as the FPN neck wants them."""
        return [self.embed_dim * 2**stage for stage in (3, 2, 1, 0)]


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """Memory encoder and memory attention of SAM 2."""

    memory_dim: int = 64
    num_layers: int = 4
    feedforward_dim: int = 2048
    dropout: float = 0.1
    num_fuser_layers: int = 2
    fuser_kernel: int = 7
    max_templates: int = 7
    layer_scale_init: float = 1e-6


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Prompt encoder and mask decoder of SAM 2."""

    depth: int = 2
    num_heads: int = 8
    mlp_dim: int = 2048
    iou_hidden_dim: int = 256
    mask_channels: int = 16
    # Weight of the prior's and the student's logits added to the decoder's own: 0 keeps a
    # published SAM 2 decoder as it is.
    residual_init: float = 0.0
    # Channels of the refinement head at strides 2, 4, 8 and 16.
    refinement_widths: tuple[int, int, int, int] = (8, 24, 32, 48)


@dataclass(frozen=True, kw_only=True)
class MatcherConfig:
    """Retrieval and dense matching."""

    feature_dim: int = 64
    temperature_init: float = 0.07
    num_positive_points: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.temperature_init <= 1:
            raise ValueError(f"temperature_init {self.temperature_init}: expected in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class VlmConfig:
    """Qwen3-VL. ``pretrained`` names a published checkpoint, whose sizes then count."""

    pretrained: str | None = None
    image_size: int
    max_text_tokens: int = 40
    vocab_size: int = 1024
    hidden_size: int = 160
    num_layers: int = 4
    num_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 40
    intermediate_size: int = 480
    vision_hidden_size: int = 128
    vision_depth: int = 3
    vision_heads: int = 4
    vision_intermediate_size: int = 384
    patch_size: int = 16
    # Patches along each side that become one token of the language model.
    merge_size: int = 2
    deepstack_layers: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        unit = self.patch_size * self.merge_size
        if self.image_size % unit:
            raise ValueError(f"image_size {self.image_size}: expected a multiple of {unit}")


@dataclass(frozen=True, kw_only=True)
class VessaConfig:
    """The whole model. ``image_size`` is the side of the square canvas, in pixels."""

    name: str
    image_size: int
    d_model: int
    # Mean and deviation of canvases in [0, 1]; published SAM 2 encoders expect ImageNet's.
    pixel_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    pixel_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    hiera: HieraConfig
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    matcher: MatcherConfig = field(default_factory=MatcherConfig)
    vlm: VlmConfig

    def __post_init__(self) -> None:
        if self.image_size % 32:
            raise ValueError(f"image_size {self.image_size}: expected a multiple of 32")

    @property
    def embedding_size(self) -> int:
        """Side of the stride-16 feature map that the mask decoder reads."""
        return self.image_size // 16

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, ready for JSON or YAML."""
        return dataclasses.asdict(self)
