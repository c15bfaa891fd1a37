from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vessa_server.matching.template_matcher import TemplateMatcher, foreground_prototype


def _matcher() -> TemplateMatcher:
    return TemplateMatcher(temperature_init=0.1, num_positive_points=2, stride=8)


def _features(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator), dim=-3)


@torch.no_grad()
def test_propagation_is_attention_over_all_template_cells() -> None:
    query, template = _features(2, 5, 4, 3, seed=0), _features(2, 3, 5, 4, 3, seed=1)
    mask = torch.rand(2, 3, 1, 4, 3, generator=torch.Generator().manual_seed(2))
    found = _matcher().propagate(query, template, mask)
    for pair in range(2):
        for row in range(4):
            for column in range(3):
                weights, values = [], []
                for k in range(3):
                    for r in range(4):
                        for c in range(3):
                            cosine = float(query[pair, :, row, column] @ template[pair, k, :, r, c])
                            weights.append(np.exp(10 * cosine))
                            values.append(float(mask[pair, k, 0, r, c]))
                expected = np.dot(weights, values) / np.sum(weights)
                assert abs(float(found[pair, 0, row, column]) - expected) < 1e-5


@torch.no_grad()
def test_an_image_matched_with_itself_gets_its_own_mask() -> None:
    features = _features(1, 32, 8, 8, seed=3)
    mask = torch.zeros(1, 1, 1, 8, 8)
    mask[..., 2:5, 3:7] = 1
    matcher = TemplateMatcher(temperature_init=0.02, num_positive_points=2, stride=8)
    prior = matcher.propagate(features, features[:, None], mask)
    assert torch.equal(prior[0, 0] > 0.5, mask[0, 0, 0] > 0)


@torch.no_grad()
def test_the_template_itself_is_retrieved_first() -> None:
    templates = _features(6, 16, 8, 8, seed=4)
    masks = torch.zeros(6, 1, 8, 8)
    masks[..., 2:6, 2:6] = 1
    embedding = TemplateMatcher.describe(templates, masks)
    scores = TemplateMatcher.retrieval_scores(templates, embedding)
    assert torch.equal(scores.argmax(dim=1), torch.arange(6))
    assert float(scores.abs().max()) <= 1 + 1e-5


def test_prototype_is_the_mean_of_the_foreground() -> None:
    features, mask = _features(1, 4, 3, 3, seed=5), torch.zeros(1, 1, 3, 3)
    mask[0, 0, 0, 1] = mask[0, 0, 2, 2] = 1
    mean = (features[0, :, 0, 1] + features[0, :, 2, 2]) / 2
    assert torch.allclose(foreground_prototype(features, mask)[0], F.normalize(mean, dim=0))


@settings(max_examples=60)
@given(st.integers(0, 10_000))
def test_prompts_lie_where_the_prior_says(seed: int) -> None:
    prior = torch.rand(1, 1, 6, 9, generator=torch.Generator().manual_seed(seed))
    found = _matcher().prompts(prior)
    points, labels = found.points_PN2[0], found.labels_PN[0]
    assert labels.tolist()[0] == 1
    flat = prior[0, 0]
    cell = (points[0] / 8).floor().long()
    assert flat[cell[1], cell[0]] == flat.max()
    if labels[1] == 1:  # the second point keeps away from the first
        other = (points[1] / 8).floor().long()
        assert int((cell - other).abs().max()) > 2
    cell = (points[2] / 8).floor().long()
    assert flat[cell[1], cell[0]] == flat.min()
    inside = flat >= flat.max() / 2
    rows, columns = torch.nonzero(inside, as_tuple=True)
    assert (points[3] / 8).tolist() == [int(columns.min()), int(rows.min())]
    assert (points[4] / 8).tolist() == [int(columns.max()) + 1, int(rows.max()) + 1]


def test_an_absent_structure_gives_no_points() -> None:
    found = _matcher().prompts(torch.full((1, 1, 4, 4), 0.05))
    assert found.labels_PN.tolist() == [[-1] * 5]
