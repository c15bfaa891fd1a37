"""Memory encoder and memory attention of SAM 2: step 4, *Remember*.

Axes: P image-class pairs, K templates, D features, S = H*W positions.
"""

from __future__ import annotations

from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
from sam2.modeling.sam.transformer import RoPEAttention
from torch import Tensor

from vessa_server.model.config import VessaConfig
from vessa_server.model.position_encoding import PositionEncoding

# SAM 2.1 maps mask probabilities to this range before the memory encoder.
MASK_SCALE, MASK_BIAS = 20.0, -10.0


def build_memory_encoder(config: VessaConfig) -> MemoryEncoder:
    """Memory encoder with the published layout."""
    memory = config.memory
    block = CXBlock(
        dim=config.d_model,
        kernel_size=memory.fuser_kernel,
        padding=memory.fuser_kernel // 2,
        layer_scale_init_value=memory.layer_scale_init,
        use_dwconv=True,
    )
    return MemoryEncoder(
        out_dim=memory.memory_dim,
        in_dim=config.d_model,
        position_encoding=PositionEncoding(memory.memory_dim),
        mask_downsampler=MaskDownSampler(
            embed_dim=config.d_model, kernel_size=3, stride=2, padding=1
        ),
        fuser=Fuser(block, num_layers=memory.num_fuser_layers),
    )


def build_memory_attention(config: VessaConfig) -> MemoryAttention:
    """Memory attention with the published layout."""
    memory, d_model = config.memory, config.d_model
    side = config.embedding_size
    attention = {
        "rope_theta": 10000.0,
        "feat_sizes": (side, side),
        "embedding_dim": d_model,
        "num_heads": 1,
        "downsample_rate": 1,
        "dropout": memory.dropout,
    }
    layer = MemoryAttentionLayer(
        activation="relu",
        dim_feedforward=memory.feedforward_dim,
        dropout=memory.dropout,
        pos_enc_at_attn=False,
        self_attention=RoPEAttention(**attention),
        d_model=d_model,
        pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False,
        cross_attention=RoPEAttention(**attention, rope_k_repeat=True, kv_in_dim=memory.memory_dim),
    )
    return MemoryAttention(
        d_model=d_model, pos_enc_at_input=True, layer=layer, num_layers=memory.num_layers
    )


def attend(
    attention: MemoryAttention,
    *,
    features_PDHW: Tensor,
    position_PDHW: Tensor,
    memory_PKMHW: Tensor,
    memory_position_MHW: Tensor,
    template_encoding_M: Tensor,
) -> Tensor:
    """Condition the features of P pairs on the memories of their K templates.

    Templates are SAM 2's conditioning frames: they share one temporal encoding, so their
    order does not matter.

    Returns:
        (P, D, H, W) conditioned features.
    """
    pairs, channels, height, width = features_PDHW.shape
    templates = memory_PKMHW.shape[1]
    memory_SPM = memory_PKMHW.permute(1, 3, 4, 0, 2).flatten(0, 2)
    position_S1M = memory_position_MHW.flatten(1).transpose(0, 1) + template_encoding_M
    position_SPM = position_S1M.repeat(templates, 1)[:, None].expand(-1, pairs, -1)
    out_SPD: Tensor = attention(
        curr=features_PDHW.flatten(2).permute(2, 0, 1),
        curr_pos=position_PDHW.flatten(2).permute(2, 0, 1),
        memory=memory_SPM,
        memory_pos=position_SPM,
    )
    return out_SPD.permute(1, 2, 0).reshape(pairs, channels, height, width)
