"""MONAI's BasicUNet as student.

Axes: B batch, C channels, H W space.
"""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets import BasicUNet
from torch import Tensor

from ssl_trainer.config import UNetConfig
from ssl_trainer.models.student import Student


def build_unet(channels: Sequence[int], out_channels: int) -> BasicUNet:
    """A U-Net of grey images with five levels, whose channels are those of the levels and last."""
    return BasicUNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=out_channels,
        features=channels,
        norm=("batch", {}),
        act=("relu", {"inplace": True}),
    )


def encode(net: BasicUNet, image_B1HW: Tensor) -> list[Tensor]:
    """Features of the five levels, finest first."""
    features = [net.conv_0(image_B1HW)]
    for down in (net.down_1, net.down_2, net.down_3, net.down_4):
        features.append(down(features[-1]))
    return features


def decode(net: BasicUNet, features: Sequence[Tensor]) -> Tensor:
    """Logits, (B, C, H, W)."""
    out = features[4]
    for up, skip in zip(
        (net.upcat_4, net.upcat_3, net.upcat_2, net.upcat_1), features[3::-1], strict=True
    ):
        out = up(out, skip)
    logits: Tensor = net.final_conv(out)
    return logits


class UNetStudent(Student):
    """U-Net of five levels; its features are those of the skip connections."""

    def __init__(self, config: UNetConfig, num_classes: int) -> None:
        super().__init__()
        self.net = build_unet(config.channels, num_classes + 1)
        self._channels = config.channels[:5]

    @property
    def encoder_channels(self) -> tuple[int, ...]:
        """See :class:`Student`."""
        return self._channels

    def encode(self, image_B1HW: Tensor) -> list[Tensor]:
        """See :class:`Student`."""
        return encode(self.net, image_B1HW)

    def decode(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """See :class:`Student`."""
        return decode(self.net, features)
