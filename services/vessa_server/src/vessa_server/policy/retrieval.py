"""Which templates an image is compared with, for all classes together.

Ranking each class on its own would pair the cavity of one patient with the muscle of another.
So a template counts by all that it shows.

Axes: C classes, K templates.
"""

from __future__ import annotations

import numpy as np

from vessa_server.policy.answers import Bools, Floats


def choose(scores_CK: Floats, shown_CK: Bools, count: int) -> list[list[int]]:
    """The templates of each class, best first.

    Args:
        scores_CK: similarity of the image to each template, for each class.
        shown_CK: whether the template shows the class; the rest of its row is not read.
        count: templates to choose for each class, fewer where fewer show it.

    Returns:
        Indices into K, for each class.
    """
    relevance_K = _relevance(scores_CK, shown_CK)
    return [_best(relevance_K, shown_K, count) for shown_K in shown_CK]


def _relevance(scores_CK: Floats, shown_CK: Bools) -> Floats:
    """Mean over the classes that a template shows, each against its own mean.

    Easy classes shall not favour who shows them alone.
    """
    scores = np.where(shown_CK, scores_CK, np.float32(0))
    mean_C1 = scores.sum(1, keepdims=True) / shown_CK.sum(1, keepdims=True, dtype=np.float32)
    centred_CK = np.where(shown_CK, scores - mean_C1, np.float32(0))
    relevance_K: Floats = centred_CK.sum(0) / np.maximum(shown_CK.sum(0), 1).astype(np.float32)
    return relevance_K


def _best(relevance_K: Floats, shown_K: Bools, count: int) -> list[int]:
    candidates = np.flatnonzero(shown_K)
    order = np.argsort(-relevance_K[candidates], kind="stable")
    chosen: list[int] = candidates[order[:count]].tolist()
    return chosen
