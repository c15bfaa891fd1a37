"""Refines mask logits from stride 4 to stride 2, where the mask decoder's own detail ends.

SAM 2's decoder sees prior and student mask through a stride-16 embedding; this head, a small
U-Net, gives them back at full detail, next to the image itself. Its last layer starts at zero,
so a published decoder is unchanged until the head is trained.

Axes: P image-class pairs, C channels, H W space.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vessa_server.model.precision import narrowed

LOGIT_SCALE = 0.25
# Image, logits, prior, map of <SEG>, student mask, and whether there is a student mask.
INPUT_CHANNELS = 8


class _Block(nn.Module):
    """Convolution to ``width`` channels and a residual convolution."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, kernel_size=3, padding=1)
        self.norm = nn.GroupNorm(4, width)
        self.second = nn.Conv2d(width, width, kernel_size=3, padding=1)

    def forward(self, x_PCHW: Tensor) -> Tensor:
        """Same height and width."""
        first = F.gelu(self.norm(self.first(x_PCHW)))
        return first + F.gelu(self.second(first))


class RefinementHead(nn.Module):
    """U-Net over the decoder's output and inputs, at strides 2, 4, 8 and 16."""

    def __init__(self, d_model: int, widths: tuple[int, int, int, int]) -> None:
        """``d_model`` is the decoder's; its features at strides 4 and 8 have 1/8 and 1/4."""
        super().__init__()
        at_2, at_4, at_8, at_16 = widths
        self.down_2 = _Block(INPUT_CHANNELS, at_2)
        self.down_4 = _Block(at_2 + d_model // 8, at_4)
        self.down_8 = _Block(at_4 + d_model // 4, at_8)
        self.conditioned = nn.Conv2d(d_model, at_16, kernel_size=1)
        self.bottom = _Block(at_8 + at_16, at_16)
        self.up_8 = _Block(at_16 + at_8, at_8)
        self.up_4 = _Block(at_8 + at_4, at_4)
        self.up_2 = _Block(at_4 + at_2, at_2)
        self.out = nn.Conv2d(at_2, 1, kernel_size=3, padding=1)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        *,
        image_PCHW: Tensor,
        logits_P1HW: Tensor,
        prior_logits_P1HW: Tensor,
        seg_logits_P1HW: Tensor,
        student_P2HW: Tensor,
        high_res_4_PCHW: Tensor,
        high_res_8_PCHW: Tensor,
        conditioned_PDHW: Tensor,
    ) -> Tensor:
        """Return a correction of the logits at stride 2, (P, 1, H, W).

        The first five are at stride 2, ``conditioned_PDHW`` at stride 16. ``student_P2HW``
        holds the student's logits and whether there is one, 0 otherwise.
        """
        inputs = [
            image_PCHW,
            LOGIT_SCALE * logits_P1HW,
            LOGIT_SCALE * prior_logits_P1HW,
            LOGIT_SCALE * seg_logits_P1HW,
            LOGIT_SCALE * student_P2HW[:, :1],
            student_P2HW[:, 1:],
        ]
        x_2 = self.down_2(narrowed(torch.cat(inputs, dim=1), self.out.weight.dtype))
        x_4 = self.down_4(torch.cat([halved(x_2), high_res_4_PCHW], dim=1))
        x_8 = self.down_8(torch.cat([halved(x_4), high_res_8_PCHW], dim=1))
        bottom = torch.cat([halved(x_8), self.conditioned(conditioned_PDHW)], dim=1)
        up = self.up_8(torch.cat([_double(self.bottom(bottom)), x_8], dim=1))
        up = self.up_4(torch.cat([_double(up), x_4], dim=1))
        out: Tensor = self.out(self.up_2(torch.cat([_double(up), x_2], dim=1)))
        return out


def halved(x_PCHW: Tensor) -> Tensor:
    """Means of two by two pixels."""
    if x_PCHW.device.type != "cpu" or x_PCHW.requires_grad:
        return F.avg_pool2d(x_PCHW, 2)
    # The same sums in the same order, in a third of the time.
    upper, lower = x_PCHW[..., ::2, :], x_PCHW[..., 1::2, :]
    return (upper[..., ::2] + upper[..., 1::2] + lower[..., ::2] + lower[..., 1::2]) * 0.25


def _double(x_PCHW: Tensor) -> Tensor:
    # As nearest interpolation, which takes several times as long on a CPU.
    return x_PCHW.repeat_interleave(2, -1).repeat_interleave(2, -2)
