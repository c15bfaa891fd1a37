"""What a student's label map counts in an answer. Axes: C classes, H W space."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vessa_server.policy import PolicyConfig, answers, students

SIZE = 20
POLICY = PolicyConfig()
AGREEMENT_RANGE, MOST_SHARE = POLICY.student.agreement, POLICY.student.most


def with_background(logits: Tensor) -> Tensor:
    return torch.from_numpy(answers.with_background(logits.numpy()))


def answered(own: Tensor, prompt: Tensor, student: Tensor) -> Tensor:
    """The answer, from VESSA's logits, the prompt's and the student's map."""
    agreement_C = students.agreement(own.numpy(), student.numpy())
    elsewhere_C = torch.from_numpy(students.elsewhere(agreement_C, POLICY))
    logits = torch.where(elsewhere_C[:, None, None], prompt, own)
    share = students.answer_share(agreement_C, POLICY)
    return torch.from_numpy(students.with_student(logits.numpy(), student.numpy(), share))


def box(top: int, left: int, side: int = 8) -> Tensor:
    """A square, 1 inside."""
    out = torch.zeros(SIZE, SIZE)
    out[top : top + side, left : left + side] = 1
    return out


def logits(masks_CHW: Tensor, value: float = 3.0) -> Tensor:
    """Logits of a model that is sure of masks."""
    return value * (2 * masks_CHW - 1)


def test_a_structure_found_elsewhere_stays_if_the_student_knows_the_place_of_another() -> None:
    student = torch.stack([box(0, 0), box(8, 8)])
    own = torch.stack([box(12, 0), box(8, 8)])
    labels = answered(logits(own), logits(student, 2.0), student).argmax(0)
    assert torch.equal(labels, (student[0] + 2 * student[1]).long())
    nowhere = torch.stack([box(12, 0), box(0, 12)])
    labels = answered(logits(nowhere), logits(student, 2.0), student).argmax(0)
    assert torch.equal(labels, (nowhere[0] + 2 * nowhere[1]).long())


@given(shift=st.integers(0, 8))
def test_the_students_share_grows_with_agreement(shift: int) -> None:
    student, own = box(6, 6)[None], box(6, 6 + shift)[None]
    found = answered(logits(own), logits(student, 2.0), student)
    agreement = (8 - shift) / (8 + shift)
    low, high = AGREEMENT_RANGE
    share = MOST_SHARE * min(max((agreement - low) / (high - low), 0), 1)
    theirs = torch.cat([1 - student, student])
    torch.testing.assert_close(found, (1 - share) * with_background(logits(own)) + share * theirs)
    torch.testing.assert_close(found.sum(0), torch.ones(SIZE, SIZE))


def test_a_structure_in_neither_says_nothing() -> None:
    nothing = torch.zeros(SIZE, SIZE)
    student = torch.stack([box(6, 6), nothing])
    for own in (box(6, 6), box(0, 14, side=6)):
        alone = answered(logits(own[None]), logits(student[:1], 2.0), student[:1])
        both = answered(logits(torch.stack([own, nothing]), 9.0), logits(student, 2.0), student)
        assert torch.equal(both.argmax(0), alone.argmax(0))
    empty = logits(torch.stack([nothing, nothing]))
    torch.testing.assert_close(answered(empty, empty, 0 * student), with_background(empty))
