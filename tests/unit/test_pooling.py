"""Labels of teacher and VESSA for the same image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_trainer.unimatch.pooling import AGREEMENT_RANGE, SURE_RANGE, agreement, doubt, pooled


@given(seed=st.integers(0, 10_000), classes=st.integers(1, 4), sparse=st.booleans())
def test_agreement_is_the_mean_dice_of_what_either_shows(
    seed: int, classes: int, sparse: bool
) -> None:
    rng = np.random.default_rng(seed)
    shown = rng.random((2, 3, 5, 4)) < (0.1 if sparse else 0.9)
    one, other = shown * rng.integers(0, classes + 1, (2, 3, 5, 4))
    found = agreement(torch.from_numpy(one), torch.from_numpy(other), classes)
    for index in range(3):
        scores = []
        for label in range(1, classes + 1):
            a, b = one[index] == label, other[index] == label
            if a.any() or b.any():
                scores.append(2 * (a & b).sum() / (a.sum() + b.sum()))
        assert float(found[index]) == pytest.approx(np.mean(scores) if scores else 1)


def test_the_teacher_is_doubted_where_a_sure_vessa_sees_something_else() -> None:
    empty, left, right = (torch.zeros(1, 4, 8, dtype=torch.long) for _ in range(3))
    left[..., :4], right[..., 4:] = 1, 1
    half = left.clone()
    half[..., 2:4], half[..., 4:6] = 0, 1  # Dice 0.5 with the left half
    sure, unsure = (torch.tensor([limit]) for limit in reversed(SURE_RANGE))
    between = torch.tensor([sum(SURE_RANGE) / 2])
    low, high = AGREEMENT_RANGE
    for teacher, vessa, iou, expected in (
        (left, left, sure, 0.0),
        (empty, empty, sure, 0.0),
        (left, right, sure, 1.0),
        (empty, left, sure, 1.0),
        (left, right, unsure, 0.0),
        (left, right, between, 0.5),
        (left, half, sure, (high - 0.5) / (high - low)),
    ):
        assert float(doubt(teacher, vessa, iou, 1)) == pytest.approx(expected, abs=1e-6)


@given(seed=st.integers(0, 10_000), share=st.floats(0.01, 1))
def test_pooled_labels_are_those_of_the_mean_distribution(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    teacher = rng.dirichlet(np.ones(4), 9).T.reshape(4, 3, 3)
    labels, sure = rng.integers(0, 4, (3, 3)), rng.uniform(0.5, 1, (3, 3))
    told, confidence, maps = (torch.from_numpy(a)[None] for a in (labels, sure, teacher))
    found, confidence = pooled(told, confidence, maps, torch.tensor([share]))
    for at in np.ndindex(3, 3):
        own, other = int(labels[at]), int(teacher[:, *at].argmax())
        vessa = np.zeros(4)
        vessa[own] = sure[at]
        if other != own:
            vessa[other] = 1 - sure[at]
        mean = (1 - share) * vessa + share * teacher[:, *at]
        best = max(own, other, key=lambda label: mean[label])
        assert found[0, *at] == best
        assert float(confidence[0, *at]) == pytest.approx(mean[best], abs=1e-6)


def test_an_image_without_the_teachers_share_keeps_vessas_labels() -> None:
    told, confidence = torch.zeros(2, 1, 1, dtype=torch.long), torch.full((2, 1, 1), 0.4)
    maps = torch.tensor([0.1, 0.9]).view(1, 2, 1, 1).expand(2, 2, 1, 1)
    labels, sure = pooled(told, confidence, maps, torch.tensor([0.0, 0.5]))
    assert labels.flatten().tolist() == [0, 1]
    assert sure.flatten().tolist() == pytest.approx([0.4, 0.75])
