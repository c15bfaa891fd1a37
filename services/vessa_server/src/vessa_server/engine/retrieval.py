"""Which templates an image is compared with, for all classes together.

Ranking each class on its own would pair the cavity of one patient with the muscle of another.
So a template counts by all that it shows. And neighbouring slices are much alike, so that the
best seven are seven times the same one: each next template is the best that also adds something
(maximal marginal relevance, Carbonell and Goldstein, SIGIR 1998).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Weight of the likeness to a template that is chosen already.
REDUNDANCY = 0.5


def choose(
    scores_CK: Tensor, embeddings_CK2D: Tensor, shown_CK: Tensor, count: int
) -> list[list[int]]:
    """The templates of each class, best first.

    Args:
        scores_CK: similarity of the image to each template, for each class.
        embeddings_CK2D: image-level and foreground embedding of each template.
        shown_CK: whether the template shows the class; the rest of its row is not read.
        count: templates to choose for each class, fewer where fewer show it.

    Returns:
        Indices into K, for each class.
    """
    relevance_K = _mean_over_classes(_centred(scores_CK, shown_CK), shown_CK)
    mean_K2D = F.normalize(_mean_over_classes(embeddings_CK2D, shown_CK), dim=-1)
    likeness_KK = torch.einsum("kpd,lpd->kl", mean_K2D, mean_K2D) / mean_K2D.shape[1]
    return [_diverse(relevance_K, likeness_KK, shown_K, count) for shown_K in shown_CK]


def _centred(scores_CK: Tensor, shown_CK: Tensor) -> Tensor:
    """Scores of a class against its mean: easy classes shall not favour who shows them alone."""
    mean_C1 = (scores_CK * shown_CK).sum(1, keepdim=True) / shown_CK.sum(1, keepdim=True)
    return scores_CK - mean_C1


def _mean_over_classes(values_CKx: Tensor, shown_CK: Tensor) -> Tensor:
    weight = shown_CK.reshape(*shown_CK.shape, *[1] * (values_CKx.dim() - 2)).float()
    return (values_CKx * weight).sum(0) / weight.sum(0).clamp(min=1)


def _diverse(relevance_K: Tensor, likeness_KK: Tensor, shown_K: Tensor, count: int) -> list[int]:
    left_K = relevance_K.masked_fill(~shown_K, -torch.inf)
    redundancy_K = torch.zeros_like(relevance_K)
    chosen: list[int] = []
    for _ in range(min(count, int(shown_K.sum()))):
        best = int((left_K - REDUNDANCY * redundancy_K).argmax())
        likeness_K = likeness_KK[best]
        redundancy_K = likeness_K if not chosen else redundancy_K.maximum(likeness_K)
        left_K[best] = -torch.inf
        chosen.append(best)
    return chosen
