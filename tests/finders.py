"""Models that find what is bright, to tell where an engine looks."""

from __future__ import annotations

from typing import Any

import torch

from vessa_server.model.vessa import Conditioned, Decoded, ImageFeatures, Vessa


class Painting(Vessa):
    """Finds what is bright, whatever the templates say."""

    def decode(
        self,
        features: ImageFeatures,
        image_P: torch.Tensor,
        conditioned: Conditioned,
        student_P1HW: torch.Tensor | None,
        has_student_P: torch.Tensor | None,
    ) -> Decoded:
        bright = features.detail_BCHW[image_P].mean(dim=1, keepdim=True)
        pairs = len(image_P)
        return Decoded(10 * (bright - 1), torch.ones(pairs), torch.ones(pairs))


class Corner(Painting):
    """Sure of itself where the bright part is at the top left of the view."""

    def decode(self, *arguments: Any) -> Decoded:
        found = super().decode(*arguments)
        side = found.logits_P1HW.shape[-1] // 2
        there_P = (found.logits_P1HW[..., :side, :side] > 0).flatten(1).any(dim=1)
        sureness_P = torch.where(there_P, 1.0, 0.01)
        logits = found.logits_P1HW * sureness_P[:, None, None, None]
        return Decoded(logits, found.iou_P, found.presence_P)
