from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vessa_server.policy import PolicyConfig
from vessa_server.policy.answers import Answer
from vessa_server.policy.students import prompt

POLICY = PolicyConfig()
OWN_SHARE_RANGE = POLICY.student.share


def mixed(
    student: npt.NDArray[np.float32], own: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    return prompt(student, own, POLICY, is_label_map=False)


@settings(max_examples=50)
@given(st.integers(0, 2**31))
def test_expected_iou_is_that_of_certain_masks_and_falls_with_doubt(seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 3, (12, 12))
    labels[0, :2] = 1, 2
    logits = np.stack([np.where(labels == k, 1.0, -1.0) for k in (1, 2)]).astype(np.float32)
    ious = [Answer.of(np.float32(scale) * logits).iou_C for scale in (0.1, 1.0, 4.0, 40.0)]
    assert ious[-1] == pytest.approx(np.ones(2), abs=1e-4)
    assert all(bool((low < high).all()) for low, high in itertools.pairwise(ious))
    assert not Answer.of(logits - 9).iou_C.any(), "nothing was segmented"


probabilities = arrays.arrays(np.float32, (2, 9, 9), elements=st.floats(0, 0.5, width=32))


@settings(max_examples=100)
@given(probabilities, probabilities)
def test_a_prompt_lies_between_the_student_and_vessa(
    student: npt.NDArray[np.float32], own: npt.NDArray[np.float32]
) -> None:
    between = mixed(student, own)
    share = (between - student)[own != student] / (own - student)[own != student]
    least, most = OWN_SHARE_RANGE
    assert np.all(between >= np.minimum(student, own) - 1e-6)
    assert np.all(between <= np.maximum(student, own) + 1e-6)
    large = np.abs(own - student)[own != student] > 1e-3
    assert np.all((share[large] > least - 1e-2) & (share[large] < most + 1e-2))


def test_vessa_has_less_to_say_where_the_student_is_sure() -> None:
    """Each structure by itself: one that is sure, one that is unsure, one not found at all."""
    student = np.zeros((3, 12, 12), np.float32)
    student[0, :4] = 1.0
    student[1, 4:8] = 0.75
    own = np.full((3, 12, 12), 0.5, np.float32)
    share = (mixed(student, own) - student)[:, 9, 9] / 0.5
    assert share[0] == pytest.approx(OWN_SHARE_RANGE[0])
    assert share[0] <= share[1] < share[2]
    assert share[2] == pytest.approx(OWN_SHARE_RANGE[1])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_structures_of_an_image_are_reported_to_be_as_good_as_each_other_by_half(
    ious: list[float],
) -> None:
    reported = np.array(Answer(np.zeros(1, np.float32), np.array(ious, np.float32)).reported_iou())
    assert reported.mean() == pytest.approx(np.mean(ious), abs=1e-6)
    half = (np.array(ious) - np.mean(ious)) / 2
    assert reported - reported.mean() == pytest.approx(half, abs=1e-6)
