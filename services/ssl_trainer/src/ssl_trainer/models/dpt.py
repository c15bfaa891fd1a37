"""DINOv2 with DPT's decoder, the student of UniMatch V2 (section 3), through ``transformers``.

Axes: B batch, C channels, T tokens with the class token first, H W space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Dinov2Backbone, Dinov2Config, DPTConfig
from transformers.models.dpt.modeling_dpt import DPTNeck, DPTSemanticSegmentationHead

from ssl_trainer.config import ConfigError, DptStudentConfig
from ssl_trainer.models.student import Student

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DptStudent(Student):
    """DINOv2; its features are the tokens of four blocks at equal distances."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: DptStudentConfig, num_classes: int) -> None:
        """Build it, with published DINOv2 weights where ``config.pretrained`` names a folder.

        Raises:
            ConfigError: the folder holds no DINOv2 in safetensors, or one of other patches.
        """
        super().__init__()
        self.backbone: Any = _backbone(config)
        shape: Any = self.backbone.config
        self.patch_size = int(shape.patch_size)
        if self.patch_size != config.patch_size:
            raise ConfigError(
                f"student.patch_size: {config.patch_size}, but {config.pretrained} has patches of "
                f"{self.patch_size} pixels; set it to {self.patch_size}"
            )
        decoder = DPTConfig(
            backbone_config=shape,
            neck_hidden_sizes=config.neck_channels,
            fusion_hidden_size=config.fusion_channels,
            semantic_classifier_dropout=0.0,  # UniMatch V2 drops channels of the features instead
        )
        decoder.num_labels = num_classes + 1
        self.neck = DPTNeck(decoder)
        self.head = DPTSemanticSegmentationHead(decoder)
        # What no forward pass uses; data-parallel training would wait for its gradients.
        embeddings: Any = self.backbone.embeddings
        embeddings.mask_token.requires_grad_(False)
        self.neck.fusion_stage.layers[0].residual_layer1.requires_grad_(False)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    @property
    def encoder_channels(self) -> tuple[int, ...]:
        """See :class:`Student`."""
        return (int(self.backbone.config.hidden_size),) * len(self.backbone.out_features)

    @property
    def mask_channels(self) -> tuple[int, ...]:
        """Those of the one stream that all features are taken from, as in UniMatch V2."""
        return self.encoder_channels[:1]

    def encode(self, image_B1HW: Tensor) -> list[Tensor]:
        """Tokens of four blocks, (B, C, T) each, of images of whole patches."""
        out = self.backbone((image_B1HW.expand(-1, 3, -1, -1) - self.mean) / self.std)
        return [tokens.transpose(1, 2) for tokens in out.feature_maps]

    def decode(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """See :class:`Student`."""
        rows, columns = (side // self.patch_size for side in size)
        tokens = [feature.transpose(1, 2) for feature in features]
        logits = self.head(self.neck(tokens, rows, columns))
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def _shape(config: DptStudentConfig) -> Dinov2Config:
    if config.pretrained is not None:
        try:
            return Dinov2Config.from_pretrained(config.pretrained, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"student.pretrained: {config.pretrained} holds no DINOv2: {error}"
            ) from error
    if config.backbone is not None:
        return Dinov2Config.from_dict(config.backbone)
    return Dinov2Config(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        patch_size=config.patch_size,
        image_size=config.image_size,
    )


def _backbone(config: DptStudentConfig) -> Dinov2Backbone:
    shape = _shape(config)
    blocks = shape.num_hidden_layers
    shape.out_features = [f"stage{blocks * part // 4}" for part in (1, 2, 3, 4)]
    shape.reshape_hidden_states = False
    if config.pretrained is None:
        return Dinov2Backbone(shape)
    try:
        return Dinov2Backbone.from_pretrained(
            config.pretrained, config=shape, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"student.pretrained: {config.pretrained} holds no DINOv2 in safetensors: {error}"
        ) from error
