"""The student: MONAI's BasicUNet with access to its encoder's features.

Axes: B batch, C channels, H W space.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import BasicUNet
from torch import Tensor, nn

from ssl_trainer.config import StudentConfig


class Student(nn.Module):
    """U-Net that can drop channels of its encoder features."""

    def __init__(self, config: StudentConfig, num_classes: int) -> None:
        super().__init__()
        self.net = BasicUNet(
            spatial_dims=2,
            in_channels=1,
            out_channels=num_classes + 1,
            features=config.channels,
            norm=("batch", {}),
            act=("relu", {"inplace": True}),
        )
        self.encoder_channels = config.channels[:5]

    def encode(self, image_B1HW: Tensor) -> list[Tensor]:
        """Features of the five levels, finest first."""
        net = self.net
        features = [net.conv_0(image_B1HW)]
        for down in (net.down_1, net.down_2, net.down_3, net.down_4):
            features.append(down(features[-1]))
        return features

    def decode(self, features: Sequence[Tensor]) -> Tensor:
        """Logits (B, classes + 1, H, W); channel 0 is background."""
        net = self.net
        out = features[4]
        for up, skip in zip(
            (net.upcat_4, net.upcat_3, net.upcat_2, net.upcat_1), features[3::-1], strict=True
        ):
            out = up(out, skip)
        logits: Tensor = net.final_conv(out)
        return logits

    def forward(self, image_B1HW: Tensor, channel_masks: list[Tensor] | None = None) -> Tensor:
        """Logits; ``channel_masks`` scales each level's channels, (B, C) each."""
        features = self.encode(image_B1HW)
        if channel_masks is not None:
            features = [
                feature * mask[:, :, None, None]
                for feature, mask in zip(features, channel_masks, strict=True)
            ]
        return self.decode(features)


@torch.no_grad()
def predict_probabilities(student: nn.Module, image_B1HW: Tensor) -> Tensor:
    """Softmax in evaluation mode, (B, classes + 1, H, W); the mode is put back."""
    training = student.training
    student.eval()
    probabilities = torch.softmax(student(image_B1HW), dim=1)
    student.train(training)
    return probabilities
