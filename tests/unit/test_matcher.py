from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vessa_server.matching import attention
from vessa_server.matching.attention import attend_fused, attend_in_steps
from vessa_server.matching.template_matcher import TemplateMatcher, foreground_prototype

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
# Prints by how many bytes matching at 1024 pixels, one template, raises a process's peak memory.
MATCHING_AT_1024_PIXELS = """
import resource
import torch
from vessa_server.matching.template_matcher import TemplateMatcher

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

torch.set_num_threads(1)
matcher = TemplateMatcher(temperature_init=0.1, num_positive_points=2, stride=8)
query, template = torch.rand(1, 16, 128, 128), torch.rand(1, 1, 16, 128, 128)
mask = torch.rand(1, 1, 1, 128, 128)
with torch.no_grad():
    matcher.propagate(query[..., :16, :16], template[..., :16, :16], mask[..., :16, :16])
    before = peak()
    matcher.propagate(query, template, mask)
print(peak() - before)
"""


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


@pytest.mark.parametrize("attend", [attend_in_steps, attend_fused])
@pytest.mark.parametrize("entries", [2**19, 100, 1])
def test_attention_and_its_gradients_are_those_of_the_whole_matrix(
    attend: Attention, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "STEP_ENTRIES", entries)
    torch.manual_seed(0)
    inputs = [
        tensor.requires_grad_()
        for tensor in (torch.randn(3, 10, 8), torch.randn(3, 33, 8), torch.rand(3, 33))
    ]
    query_PQD, key_PRD, value_PR = inputs
    attention_PQR = torch.softmax(query_PQD @ key_PRD.transpose(1, 2), dim=-1)
    expected = (attention_PQR @ value_PR[..., None])[..., 0]
    found = attend(*inputs)
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)
    weights = torch.randn(3, 10)
    gradients = [torch.autograd.grad((weights * out).sum(), inputs) for out in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_pair_is_matched_alone_as_among_others() -> None:
    query, template = _features(3, 16, 12, 12, seed=6), _features(3, 2, 16, 12, 12, seed=7)
    mask = torch.rand(3, 2, 1, 12, 12, generator=torch.Generator().manual_seed(8))
    together = _matcher().propagate(query, template, mask)
    for pair in range(3):
        rows = slice(pair, pair + 1)
        alone = _matcher().propagate(query[rows], template[rows], mask[rows])
        assert torch.equal(alone, together[rows])


def test_the_attention_matrix_of_large_canvases_is_never_whole() -> None:
    command = [sys.executable, "-c", MATCHING_AT_1024_PIXELS]
    grown = int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert grown < 64 * 2**20, "the whole matrix has 1 GiB"


@torch.no_grad()
def test_half_precision_features_are_matched_in_fp32() -> None:
    query, template = _features(1, 16, 6, 6, seed=9), _features(1, 2, 16, 6, 6, seed=10)
    mask = torch.rand(1, 2, 1, 6, 6, generator=torch.Generator().manual_seed(11)).bfloat16()
    halves = [tensor.bfloat16() for tensor in (query, template, mask)]
    found = _matcher().propagate(*halves)
    assert torch.equal(found, _matcher().propagate(*(tensor.float() for tensor in halves)))


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
