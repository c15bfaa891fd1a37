"""Templates tell in how many pieces structures come; smaller pieces beside them are doubtful.

Axes: C classes, H W space.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from vessa_server.model import preprocess

# Logit of what is left out: background, but not surely so.
DOUBTED_LOGIT = -2.0


@dataclass(frozen=True)
class Pieces:
    """The most pieces that the templates show: of each class, and of all classes together."""

    of_class: tuple[int, ...]
    together: int

    @staticmethod
    def count(masks_CHW: npt.NDArray[np.bool_]) -> Pieces:
        """The pieces of one template's structures."""
        together: npt.NDArray[np.bool_] = np.any(masks_CHW, axis=0)
        of_class = tuple(preprocess.parts(mask).count for mask in masks_CHW)
        return Pieces(of_class, preprocess.parts(together).count)

    def doubt(self, logits_CHW: Tensor) -> Tensor:
        """Lower the logits of the pieces beyond as many as the templates show.

        The largest pieces stay, by summed probability. A structure that no template shows is
        left as it is.
        """
        logits = logits_CHW.clone()
        probability = logits.sigmoid()
        winner_HW = _labels(logits)
        for index, most in enumerate(self.of_class):
            extra = _beyond(winner_HW == index + 1, probability[index], most)
            logits[index, extra] = logits[index, extra].clamp(max=DOUBTED_LOGIT)
        shown = _labels(logits) > 0
        extra = _beyond(shown, probability.amax(dim=0), self.together)
        logits[:, extra] = logits[:, extra].clamp(max=DOUBTED_LOGIT)
        return logits


def most(counts: list[Pieces]) -> Pieces:
    """What any of several templates shows."""
    of_class = tuple(max(values) for values in zip(*(c.of_class for c in counts), strict=True))
    return Pieces(of_class, max(c.together for c in counts))


def _labels(logits_CHW: Tensor) -> Tensor:
    """The strongest class of each pixel, from 1; 0 where none is above 0."""
    strongest = logits_CHW.max(dim=0)
    return torch.where(strongest.values > 0, strongest.indices + 1, 0)


def _beyond(mask_HW: Tensor, weight_HW: Tensor, most: int) -> Tensor:
    """Pixels of ``mask_HW`` outside of its ``most`` heaviest pieces; none where ``most`` is 0."""
    labelled, count = ndimage.label(mask_HW.numpy())
    if not 0 < most < count:
        return torch.zeros_like(mask_HW)
    weights = np.bincount(labelled.ravel(), weights=weight_HW.numpy().ravel())[1:]
    kept = 1 + np.argsort(-weights, kind="stable")[:most]
    return torch.from_numpy((labelled > 0) & ~np.isin(labelled, kept))
