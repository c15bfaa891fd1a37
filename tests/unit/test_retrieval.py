"""Choosing templates: one choice for all classes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vessa_server.policy.answers import Bools, Floats
from vessa_server.policy.retrieval import choose


def _bank(seed: int, classes: int, templates: int) -> tuple[Floats, Bools]:
    rng = np.random.default_rng(seed)
    shown = rng.random((classes, templates)) < 0.7
    shown[:, 0] = True
    return rng.random((classes, templates)).astype(np.float32), shown


def _slowly(scores: Floats, shown: Bools, count: int) -> list[list[int]]:
    """The definition, template by template."""
    classes, templates = shown.shape
    relevance = []
    for k in range(templates):
        shows = [c for c in range(classes) if shown[c, k]]
        centred = [float(scores[c, k]) - float(scores[c][shown[c]].mean()) for c in shows]
        relevance.append(sum(centred) / max(1, len(shows)))
    return [
        sorted((k for k in range(templates) if shown[c, k]), key=lambda k: -relevance[k])[:count]
        for c in range(classes)
    ]


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 9), st.integers(1, 7))
def test_templates_count_by_all_that_they_show(
    seed: int, classes: int, templates: int, count: int
) -> None:
    scores, shown = _bank(seed, classes, templates)
    assert choose(scores, shown, count) == _slowly(scores, shown, count)


def test_what_is_not_shown_is_not_read() -> None:
    scores, shown = _bank(1, 3, 8)
    expected = choose(scores, shown, 4)
    scores[~shown] = 9
    assert choose(scores, shown, 4) == expected


def test_classes_that_all_templates_show_get_the_same_templates() -> None:
    scores, shown = _bank(2, 3, 8)
    first, *others = choose(scores, np.ones_like(shown), 5)
    assert others == [first, first]
