"""MONAI's BasicUNet as student: its modules and weights, its decoder computed in fewer steps.

Axes: B batch, C channels, O output channels, H W space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from monai.networks.nets import BasicUNet
from monai.networks.nets.basic_unet import UpCat
from torch import Tensor

from ssl_trainer.config import UNetConfig
from ssl_trainer.models.student import Student


def build_unet(channels: Sequence[int], out_channels: int) -> BasicUNet:
    """A U-Net of grey images with five levels, whose channels are those of the levels and last."""
    net = BasicUNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=out_channels,
        features=channels,
        norm=("batch", {}),
        act=("relu", {"inplace": True}),
    )
    for block in net.modules():
        if isinstance(block, Convolution):
            # Batch normalisation takes it away: its gradient is rounding, and slow to find.
            block.conv.bias.requires_grad_(False)
    return net


def encode(net: BasicUNet, image_B1HW: Tensor) -> list[Tensor]:
    """Features of the five levels, finest first."""
    features = [net.conv_0(image_B1HW)]
    for down in (net.down_1, net.down_2, net.down_3, net.down_4):
        features.append(down(features[-1]))
    return features


def decode(net: BasicUNet, features: Sequence[Tensor]) -> Tensor:
    """Logits, (B, C, H, W)."""
    out = features[4]
    for up, skip in zip((net.upcat_4, net.upcat_3, net.upcat_2), features[3:0:-1], strict=True):
        if _halved(skip, out):
            out = up.convs(torch.cat([skip, up.upsample(out)], dim=1))
        else:  # MONAI mends odd sides; it copies where there are none, too
            out = up(out, skip)
    finest, skip = net.upcat_1, features[0]
    if _halved(skip, out):
        joined = finest.convs.conv_0.adn(_joined(finest, skip, out))
        out = finest.convs.conv_1(joined)
    else:
        out = finest(out, skip)
    # A matrix product: as a convolution of 1 x 1 it takes twice as long on one core.
    last = net.final_conv
    out_BHWC = F.linear(out.permute(0, 2, 3, 1), last.weight.flatten(1), last.bias)
    return out_BHWC.permute(0, 3, 1, 2)


def _halved(fine_BCHW: Tensor, coarse_BCHW: Tensor) -> bool:
    """Whether a coarse feature has half the sides of a fine one."""
    return fine_BCHW.shape[2:] == tuple(2 * side for side in coarse_BCHW.shape[2:])


def _joined(up: UpCat, skip_BCHW: Tensor, coarse_BCHW: Tensor) -> Tensor:
    """The first convolution of a level, of its skip connection and of upsampled coarser features.

    Upsampling by a transposed convolution of 2 x 2 and convolving the result is one linear map, a
    transposed convolution of 4 x 4, which takes less than half of the time. Besides, there is what
    the bias of the upsampling becomes: the same everywhere but at the border.
    """
    convolution, upsample = up.convs.conv_0.conv, up.upsample.deconv
    channels = [skip_BCHW.shape[1], upsample.weight.shape[1]]
    of_skip_OCHW, of_coarse_OCHW = convolution.weight.split(channels, dim=1)
    both = F.conv2d(upsample.weight, of_coarse_OCHW, padding=2)
    bias_1C33 = upsample.bias[None, :, None, None].expand(-1, -1, 3, 3)
    edges_1O33 = F.conv2d(bias_1C33, of_coarse_OCHW, padding=1)
    middle_1O11 = edges_1O33[:, :, 1:2, 1:2]
    # Batch normalisation takes away what is the same everywhere, so it has no gradient.
    bias_O = convolution.bias + middle_1O11.flatten().detach()
    own = F.conv2d(skip_BCHW, of_skip_OCHW, bias_O, padding=1)
    upsampled = F.conv_transpose2d(coarse_BCHW, both, stride=2, padding=1)
    joined: Tensor = _Sum.apply(own, upsampled, edges_1O33 - middle_1O11)
    return joined


# Rows or columns of maps, of which the first and the last differ from the others.
_PARTS = (slice(0, 1), slice(1, -1), slice(-1, None))


class _Sum(torch.autograd.Function):
    """Sum of two batches of maps, with values for their edges and corners.

    Adding a map that is 0 but at the border would take two passes over all, and its gradient more.
    """

    @staticmethod
    def forward(ctx: Any, one_BOHW: Tensor, other_BOHW: Tensor, edges_1O33: Tensor) -> Tensor:
        out = one_BOHW + other_BOHW
        for row, column in _border():
            out[:, :, _PARTS[row], _PARTS[column]] += edges_1O33[:, :, row, column, None, None]
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (gradient,) = gradients
        edges_1O33 = gradient.new_zeros(1, gradient.shape[1], 3, 3)
        for row, column in _border():
            part = gradient[:, :, _PARTS[row], _PARTS[column]]
            edges_1O33[0, :, row, column] = part.sum(dim=(0, 2, 3))
        return gradient, gradient, edges_1O33


def _border() -> list[tuple[int, int]]:
    return [(row, column) for row in range(3) for column in range(3) if (row, column) != (1, 1)]


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
