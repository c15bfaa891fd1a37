"""Prompt encoder and mask decoder of SAM 2: step 5, *Decode*."""

from __future__ import annotations

from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.prompt_encoder import PromptEncoder
from sam2.modeling.sam.transformer import TwoWayTransformer

from vessa_server.model.config import VessaConfig
from vessa_server.model.position_encoding import RandomFrequencies


def build_prompt_encoder(config: VessaConfig) -> PromptEncoder:
    """Prompt encoder with the published layout."""
    side = config.embedding_size
    encoder = PromptEncoder(
        embed_dim=config.d_model,
        image_embedding_size=(side, side),
        input_image_size=(config.image_size, config.image_size),
        mask_in_chans=config.decoder.mask_channels,
    )
    encoder.pe_layer = RandomFrequencies(config.d_model // 2)
    return encoder


def build_mask_decoder(config: VessaConfig) -> MaskDecoder:
    """Mask decoder with the published layout of SAM 2.1 (object score, high-res features)."""
    decoder = config.decoder
    return MaskDecoder(
        num_multimask_outputs=3,
        transformer=TwoWayTransformer(
            depth=decoder.depth,
            embedding_dim=config.d_model,
            mlp_dim=decoder.mlp_dim,
            num_heads=decoder.num_heads,
        ),
        transformer_dim=config.d_model,
        iou_head_depth=3,
        iou_head_hidden_dim=decoder.iou_hidden_dim,
        use_high_res_features=True,
        iou_prediction_use_sigmoid=True,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
        use_multimask_token_for_obj_ptr=True,
    )
