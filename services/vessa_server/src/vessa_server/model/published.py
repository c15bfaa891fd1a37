"""Sizes of the published checkpoints that the presets are made of.

SAM 2.1's are in the presets: https://github.com/facebookresearch/sam2, ``sam2/configs/sam2.1``.
"""

from __future__ import annotations

from transformers import Qwen3VLConfig

# From config.json of https://huggingface.co/Qwen/Qwen3-VL-2B-Instruct and -8B-Instruct.
TEXT = {
    "vocab_size": 151936,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5000000.0,
        "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
    },
}
VISION = {
    "num_heads": 16,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "num_position_embeddings": 2304,
}


def qwen3_vl_2b() -> Qwen3VLConfig:
    """Qwen3-VL-2B: language model of 28 layers, vision tower of 24."""
    text = {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "out_hidden_size": 2048,
        "deepstack_visual_indexes": [5, 11, 17],
    }
    return Qwen3VLConfig(
        text_config={**TEXT, **text}, vision_config={**VISION, **vision}, tie_word_embeddings=True
    )


def qwen3_vl_8b() -> Qwen3VLConfig:
    """Qwen3-VL-8B: language model of 36 layers, vision tower of 27."""
    text = {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    }
    vision = {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "out_hidden_size": 4096,
        "deepstack_visual_indexes": [8, 16, 24],
    }
    return Qwen3VLConfig(
        text_config={**TEXT, **text}, vision_config={**VISION, **vision}, tie_word_embeddings=False
    )


ARCHITECTURES = {
    "Qwen/Qwen3-VL-2B-Instruct": qwen3_vl_2b,
    "Qwen/Qwen3-VL-8B-Instruct": qwen3_vl_8b,
}
