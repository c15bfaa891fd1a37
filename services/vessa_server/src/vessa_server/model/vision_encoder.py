"""Hiera + FPN image encoder of SAM 2, with the projections that the decoder and matcher read.

Axes: B batch, C channels, H W space, D features.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
from torch import Tensor, nn

from vessa_server.model.config import VessaConfig
from vessa_server.model.position_encoding import EncodingsOfWeights, PositionEncoding
from vessa_server.model.precision import in_full_precision, narrowed


@dataclass(frozen=True)
class FeaturePyramid:
    """FPN levels at strides 4, 8 and 16, all with ``d_model`` channels."""

    level_4_BCHW: Tensor
    level_8_BCHW: Tensor
    level_16_BCHW: Tensor


class Trunk(Hiera):
    """Hiera whose position embedding is enlarged to a size of images once, not at each call."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        self._enlarged = EncodingsOfWeights()

    def _get_pos_embed(self, hw: tuple[int, int]) -> Tensor:
        size = (int(hw[0]), int(hw[1]))
        weights = (self.pos_embed, self.pos_embed_window)
        return self._enlarged.get(size, weights, functools.partial(super()._get_pos_embed, size))


def build_image_encoder(config: VessaConfig) -> ImageEncoder:
    """Build the encoder with the state-dict layout of the published checkpoints."""
    hiera = config.hiera
    trunk = Trunk(
        embed_dim=hiera.embed_dim,
        num_heads=hiera.num_heads,
        drop_path_rate=hiera.drop_path_rate,
        stages=hiera.stages,
        global_att_blocks=hiera.global_attention_blocks,
        window_pos_embed_bkg_spatial_size=hiera.background_size,
        window_spec=hiera.window_spec,
    )
    neck = FpnNeck(
        position_encoding=PositionEncoding(config.d_model),
        d_model=config.d_model,
        backbone_channel_list=hiera.channels,
        fpn_top_down_levels=list(hiera.fpn_top_down_levels),
        fpn_interp_model="nearest",
    )
    return ImageEncoder(trunk=trunk, neck=neck, scalp=1)


def pyramid(encoder: ImageEncoder, x_B3HW: Tensor) -> FeaturePyramid:
    """Encode images of ``image_size`` squared, normalised, to the three FPN levels."""
    levels = encoder(x_B3HW)["backbone_fpn"]
    # The neck of SAM 2 adds levels in fp32.
    return FeaturePyramid(*(narrowed(level, x_B3HW.dtype) for level in levels))


class MatchHead(nn.Module):
    """Projects FPN levels 8 and 16 to unit-length features for dense matching, at stride 8."""

    def __init__(self, d_model: int, feature_dim: int) -> None:
        super().__init__()
        self.fine = nn.Conv2d(d_model, feature_dim, kernel_size=1)
        self.coarse = nn.Conv2d(d_model, feature_dim, kernel_size=1)
        self.mix = nn.Conv2d(feature_dim, feature_dim, kernel_size=3, padding=1)

    def forward(self, levels: FeaturePyramid) -> Tensor:
        """Return (B, D, H/8, W/8), L2-normalised over D."""
        fine = self.fine(levels.level_8_BCHW)
        coarse = F.interpolate(self.coarse(levels.level_16_BCHW), scale_factor=2.0, mode="bilinear")
        out: Tensor = self.mix(torch.relu(fine + coarse)) + fine + coarse
        return _unit_length(out)


@in_full_precision
def _unit_length(x_BDHW: Tensor) -> Tensor:
    return F.normalize(x_BDHW, dim=1)
