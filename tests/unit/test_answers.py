from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vessa_server.policy import PolicyConfig
from vessa_server.policy.answers import Answer, decide, winner, with_background
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


@settings(max_examples=50)
@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 9)),
        elements=st.floats(-30, 30, width=32),
    )
)
def test_one_map_at_a_time_gives_what_all_together_give(logits: npt.NDArray[np.float32]) -> None:
    probability = with_background(logits)
    _, confidence = winner(probability)
    decided = decide(lambda: iter(logits))
    assert decided.confidence == pytest.approx(confidence, abs=1e-6)
    for index, map_HW in enumerate(logits, start=1):
        assert decided.probability(map_HW) == pytest.approx(probability[index], abs=1e-6)
    # Where two are equal up to rounding either is right.
    chosen = np.take_along_axis(probability, decided.labels_HW[None].astype(np.int64), 0)[0]
    assert chosen == pytest.approx(confidence, abs=1e-6)
    assert decided.labels_HW.dtype == np.uint8


def test_no_more_than_two_maps_are_in_memory() -> None:
    made: list[weakref.ref[npt.NDArray[np.float32]]] = []

    def maps() -> Iterator[npt.NDArray[np.float32]]:
        for index in range(6):
            assert sum(old() is not None for old in made) <= 2
            one = np.full((3, 3), index, np.float32)
            made.append(weakref.ref(one))
            yield one
            del one

    decide(maps)
    assert len(made) == 12
