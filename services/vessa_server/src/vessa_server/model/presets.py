"""Presets: functions that return a :class:`VessaConfig`."""

from __future__ import annotations

from collections.abc import Callable

from vessa_server.model.config import (
    DecoderConfig,
    HieraConfig,
    MatcherConfig,
    MemoryConfig,
    VessaConfig,
    VlmConfig,
)


def nano() -> VessaConfig:
    """About 7 M parameters, for CPUs; its weights are shipped with the project."""
    return VessaConfig(
        name="nano",
        image_size=192,
        d_model=128,
        pixel_mean=(0.35, 0.35, 0.35),
        pixel_std=(0.25, 0.25, 0.25),
        hiera=HieraConfig(
            embed_dim=32,
            stages=(1, 2, 4, 1),
            global_attention_blocks=(4, 6),
            window_spec=(8, 8, 8, 8),
            background_size=(8, 8),
            fpn_top_down_levels=(0, 1, 2, 3),
        ),
        memory=MemoryConfig(num_layers=2, feedforward_dim=256, dropout=0.0, layer_scale_init=0.1),
        decoder=DecoderConfig(num_heads=4, mlp_dim=256, iou_hidden_dim=128, residual_init=0.5),
        matcher=MatcherConfig(feature_dim=64),
        vlm=VlmConfig(image_size=128, merge_size=1),
    )


def base() -> VessaConfig:
    """Qwen3-VL-2B with SAM 2.1 Hiera-S."""
    return VessaConfig(
        name="base",
        image_size=1024,
        d_model=256,
        hiera=HieraConfig(
            embed_dim=96,
            stages=(1, 2, 11, 2),
            global_attention_blocks=(7, 10, 13),
            window_spec=(8, 4, 14, 7),
            background_size=(7, 7),
            fpn_top_down_levels=(2, 3),
        ),
        vlm=VlmConfig(pretrained="Qwen/Qwen3-VL-2B-Instruct", image_size=448, max_text_tokens=96),
    )


def large() -> VessaConfig:
    """Qwen3-VL-8B with SAM 2.1 Hiera-L."""
    return VessaConfig(
        name="large",
        image_size=1024,
        d_model=256,
        hiera=HieraConfig(
            embed_dim=144,
            num_heads=2,
            stages=(2, 6, 36, 4),
            global_attention_blocks=(23, 33, 43),
            window_spec=(8, 4, 16, 8),
            background_size=(7, 7),
            fpn_top_down_levels=(2, 3),
        ),
        vlm=VlmConfig(pretrained="Qwen/Qwen3-VL-8B-Instruct", image_size=448, max_text_tokens=96),
    )


PRESETS: dict[str, Callable[[], VessaConfig]] = {"nano": nano, "base": base, "large": large}


def preset(name: str) -> VessaConfig:
    """Return the preset called ``name``.

    Raises:
        ValueError: no preset has that name.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r}: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]()
