"""Choosing templates: one choice for all classes, without repeating itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from vessa_server.policy import PolicyConfig, retrieval

POLICY = PolicyConfig()
REDUNDANCY = POLICY.redundancy
Bank = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def choose(
    scores: torch.Tensor, embeddings: torch.Tensor, shown: torch.Tensor, count: int
) -> list[list[int]]:
    templates = retrieval.Diversity.of(embeddings.numpy(), shown.numpy())
    return retrieval.choose(scores.numpy(), templates, count, POLICY)


def _bank(seed: int, classes: int, templates: int) -> Bank:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(classes, templates, generator=generator)
    embeddings = F.normalize(torch.randn(classes, templates, 2, 5, generator=generator), dim=-1)
    shown = torch.rand(classes, templates, generator=generator) < 0.7
    shown[:, 0] = True
    return scores, embeddings, shown


def _slowly(
    scores: torch.Tensor, embeddings: torch.Tensor, shown: torch.Tensor, count: int
) -> list[list[int]]:
    """The definition, template by template."""
    classes, templates = shown.shape
    relevance, means = [], []
    for k in range(templates):
        shows = [c for c in range(classes) if shown[c, k]]
        centred = [float(scores[c, k] - scores[c][shown[c]].mean()) for c in shows]
        relevance.append(sum(centred) / max(1, len(shows)))
        total = torch.zeros(2, 5)
        for c in shows:
            total += embeddings[c, k]
        means.append(F.normalize(total, dim=-1))
    result = []
    for c in range(classes):
        left, order = [k for k in range(templates) if shown[c, k]], list[int]()
        while left and len(order) < count:
            values = []
            for k in left:
                likeness = [float((means[k] * means[j]).sum() / 2) for j in order]
                values.append(relevance[k] - REDUNDANCY * max(likeness, default=0.0))
            order.append(left.pop(values.index(max(values))))
        result.append(order)
    return result


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 9), st.integers(1, 7))
def test_choice_is_maximal_marginal_relevance(
    seed: int, classes: int, templates: int, count: int
) -> None:
    bank = _bank(seed, classes, templates)
    assert choose(*bank, count) == _slowly(*bank, count)


def test_what_is_not_shown_is_not_read() -> None:
    scores, embeddings, shown = _bank(1, 3, 8)
    expected = choose(scores, embeddings, shown, 4)
    scores[~shown] = 9
    embeddings[~shown] = 9
    assert choose(scores, embeddings, shown, 4) == expected


def test_a_copy_of_the_best_template_does_not_push_others_out() -> None:
    embeddings = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8]]), dim=-1)
    scores = torch.tensor([[0.9, 0.9, 0.8]])
    order = choose(scores, embeddings[None, :, None].expand(1, 3, 2, 2), torch.ones(1, 3) > 0, 2)
    assert order == [[0, 2]]


def test_classes_that_all_templates_show_get_the_same_templates() -> None:
    scores, embeddings, shown = _bank(2, 3, 8)
    first, *others = choose(scores, embeddings, torch.ones_like(shown), 5)
    assert others == [first, first]
