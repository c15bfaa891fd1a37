"""What every student is: an encoder whose features' channels can be dropped, and a decoder.

Axes: B batch, C channels, H W space.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Student(nn.Module, ABC):
    """A segmentation network; UniMatch V2 drops channels between its encoder and decoder."""

    @property
    @abstractmethod
    def encoder_channels(self) -> tuple[int, ...]:
        """Channels of each of the encoder's features."""

    @property
    def mask_channels(self) -> tuple[int, ...]:
        """Channels of the masks that drop some: one for each feature, or one for all."""
        return self.encoder_channels

    @abstractmethod
    def encode(self, image_B1HW: Tensor) -> list[Tensor]:
        """Features, channels on the second axis, in the order of ``encoder_channels``."""

    @abstractmethod
    def decode(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Logits of images of ``size``, (B, classes + 1, H, W); channel 0 is background."""

    def forward(self, image_B1HW: Tensor, channel_masks: list[Tensor] | None = None) -> Tensor:
        """Logits; ``channel_masks`` scales the channels of features, (B, C) each."""
        features = self.encode(image_B1HW)
        if channel_masks is not None:
            if len(channel_masks) == 1:
                channel_masks = channel_masks * len(features)
            features = [
                feature * mask.view(*mask.shape, *[1] * (feature.ndim - 2))
                for feature, mask in zip(features, channel_masks, strict=True)
            ]
        height, width = image_B1HW.shape[2:]
        return self.decode(features, (height, width))


@torch.no_grad()
def probabilities(student: nn.Module, image_B1HW: Tensor) -> Tensor:
    """Softmax in evaluation mode, (B, classes + 1, H, W); the mode is put back.

    Images and probabilities are where the student is.
    """
    training = student.training
    if training:  # changing the mode visits every module
        student.eval()
    logits = student(image_B1HW).float()
    if training:
        student.train()
    return torch.softmax(logits, dim=1)


def predict_probabilities(student: nn.Module, image_B1HW: Tensor) -> Tensor:
    """The same of images anywhere, on the CPU."""
    return probabilities(student, image_B1HW.to(next(student.parameters()).device)).cpu()
