"""Which templates an image is compared with, for all classes together.

Ranking each class on its own would pair the cavity of one patient with the muscle of another.
So a template counts by all that it shows. And neighbouring slices are much alike, so that the
best seven are seven times the same one: each next template is the best that also adds something
(maximal marginal relevance, Carbonell and Goldstein, SIGIR 1998).

Axes: C classes, K templates, D features, E both embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vessa_server.policy.answers import Bools, Floats
from vessa_server.policy.config import PolicyConfig


@dataclass(frozen=True)
class Diversity:
    """What choosing needs of the templates, whatever the image.

    Attributes:
        shown_CK: whether the template shows the class.
        mean_K2D: unit-length embeddings, mean over the classes that the template shows.
    """

    shown_CK: Bools
    mean_K2D: Floats

    @staticmethod
    def of(embeddings_CK2D: Floats, shown_CK: Bools) -> Diversity:
        """From the embeddings of each class; those of classes that are not shown do not count."""
        mean = _mean_over_classes(torch.from_numpy(embeddings_CK2D), torch.from_numpy(shown_CK))
        return Diversity(shown_CK, F.normalize(mean, dim=-1).numpy())


def choose(
    scores_CK: Floats, templates: Diversity, count: int, policy: PolicyConfig
) -> list[list[int]]:
    """The templates of each class, best first.

    Args:
        scores_CK: similarity of the image to each template, for each class.
        templates: among which to choose.
        count: templates to choose for each class, fewer where fewer show it.
        policy: the weight of diversity.

    Returns:
        Indices into K, for each class.
    """
    shown = torch.from_numpy(templates.shown_CK)
    relevance_K = _mean_over_classes(_centred(torch.from_numpy(scores_CK), shown), shown)
    redundancy = policy.redundancy if policy.uses("diversity") else 0.0
    mean_KE = torch.from_numpy(templates.mean_K2D).flatten(1)
    orders: dict[bytes, list[int]] = {}  # classes that the same templates show choose the same
    for row, shown_K in zip(templates.shown_CK, shown, strict=True):
        if row.tobytes() not in orders:
            orders[row.tobytes()] = _diverse(relevance_K, mean_KE, shown_K, count, redundancy)
    return [orders[row.tobytes()] for row in templates.shown_CK]


def _centred(scores_CK: Tensor, shown_CK: Tensor) -> Tensor:
    """Scores of a class against its mean: easy classes shall not favour who shows them alone."""
    mean_C1 = (scores_CK * shown_CK).sum(1, keepdim=True) / shown_CK.sum(1, keepdim=True)
    return scores_CK - mean_C1


def _mean_over_classes(values_CKx: Tensor, shown_CK: Tensor) -> Tensor:
    weight = shown_CK.reshape(*shown_CK.shape, *[1] * (values_CKx.dim() - 2)).float()
    return (values_CKx * weight).sum(0) / weight.sum(0).clamp(min=1)


def _diverse(
    relevance_K: Tensor, mean_KE: Tensor, shown_K: Tensor, count: int, redundancy: float
) -> list[int]:
    left_K = relevance_K.masked_fill(~shown_K, -torch.inf)
    redundancy_K = torch.zeros_like(relevance_K)
    chosen: list[int] = []
    for _ in range(min(count, int(shown_K.sum()))):
        best = int((left_K - redundancy * redundancy_K).argmax())
        likeness_K = mean_KE @ mean_KE[best] / 2  # of the image and of the foreground
        redundancy_K = likeness_K if not chosen else redundancy_K.maximum(likeness_K)
        left_K[best] = -torch.inf
        chosen.append(best)
    return chosen
