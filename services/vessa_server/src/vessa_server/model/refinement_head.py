"""Refines mask logits at stride 4, where the mask decoder's own detail ends.

SAM 2's decoder sees prior and student mask through a stride-16 embedding; this head gives them
back at full detail, next to the image's high-resolution features. Its last layer starts at
zero, so a published decoder is unchanged until the head is trained.

Axes: P image-class pairs, C channels, H W space at stride 4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LOGIT_SCALE = 0.25


class RefinementHead(nn.Module):
    """Three convolutions over logits, prior, student mask and image features."""

    def __init__(self, feature_channels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(feature_channels + 4, width, kernel_size=3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, kernel_size=3, padding=2, dilation=2),
            nn.GELU(),
            nn.Conv2d(width, 1, kernel_size=3, padding=1),
        )
        last = self.layers[-1]
        assert isinstance(last, nn.Conv2d)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)

    def forward(
        self,
        logits_P1HW: Tensor,
        prior_logits_P1HW: Tensor,
        student_P2HW: Tensor,
        features_PCHW: Tensor,
    ) -> Tensor:
        """Return a correction of the logits, (P, 1, H, W).

        ``student_P2HW`` holds the student's logits and whether there is one, 0 otherwise.
        """
        inputs = [
            LOGIT_SCALE * logits_P1HW,
            LOGIT_SCALE * prior_logits_P1HW,
            LOGIT_SCALE * student_P2HW[:, :1],
            student_P2HW[:, 1:],
            features_PCHW,
        ]
        out: Tensor = self.layers(torch.cat(inputs, dim=1))
        return out
