"""Rules that can be switched off: each one does something, and what it does is its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finders import Corner, Painting
from support import CLASSES, engine_of, model_of, picture, without
from vessa_client import AnyArray, InvalidRequestError, SegmentationRequest, SegmentationResult
from vessa_server.api.settings import ServerSettings
from vessa_server.engine import VessaEngine
from vessa_server.model.vessa import Decoded, Vessa
from vessa_server.policy import RULES, PolicyConfig

NAMES = st.sets(st.sampled_from(sorted(RULES)))


@given(first=NAMES, second=NAMES)
def test_switching_rules_off_adds_up(first: set[str], second: set[str]) -> None:
    policy = PolicyConfig().without(first).without(second)
    assert policy == PolicyConfig().without(second | first) == PolicyConfig(off=policy.off)
    assert {rule for rule in RULES if not policy.uses(rule)} == first | second
    assert policy.without([]) is policy
    assert policy.without(first) is policy


@pytest.mark.parametrize("names", [["turn"], ["turns", "Focus"], [""], ["focus", "turns,focus"]])
def test_an_unknown_rule_is_refused_with_those_that_there_are(
    tmp_path: Path, names: list[str]
) -> None:
    def switch_off() -> Iterable[Any]:
        yield lambda: PolicyConfig().without(names)
        yield lambda: PolicyConfig(off=frozenset(names))
        request = SegmentationRequest(image=picture(0)[0], policy_off=tuple(names))
        engine = engine_of(tmp_path)
        yield lambda: engine.segment(request)

    for wrong in switch_off():
        with pytest.raises(InvalidRequestError, match="policy_off: no rule '") as raised:
            wrong()
        assert raised.value.field == "policy_off"
        assert all(rule in raised.value.message for rule in RULES)


def test_a_server_that_is_to_switch_off_an_unknown_rule_does_not_start() -> None:
    with pytest.raises(ValueError, match=r"no rule 'turn', expected some of turns, focus"):
        ServerSettings(policy_off="focus,turn")
    settings = ServerSettings(policy_off=" focus, turns,").engine_settings()
    assert settings.policy.off == {"focus", "turns"}


class Echo(Painting):
    """Finds what is bright, or what it is prompted with; likes prompts that fill the view."""

    def decode(self, *arguments: Any) -> Decoded:
        found = super().decode(*arguments)
        prompt = arguments[3]
        if prompt is None:
            return found
        expected = 0.5 + prompt.flatten(1).mean(dim=1)
        return Decoded(10 * prompt - 5, expected, found.presence_P)


class Blind(Vessa):
    """Finds nothing and knows it."""

    def decode(self, *arguments: Any) -> Decoded:
        found = super().decode(*arguments)
        low = torch.full_like(found.iou_P, 0.1)
        return Decoded(torch.full_like(found.logits_P1HW, -1.0), low, found.presence_P)


@dataclass(frozen=True)
class Case:
    """What a rule matters for: a model, a request, and rules that are off anyway."""

    model: type[Vessa]
    image: AnyArray
    student: AnyArray | None = None
    volume: tuple[AnyArray, ...] = ()
    top_k: int = 0
    off: tuple[str, ...] = ("turns", "focus")

    @property
    def request(self) -> SegmentationRequest:
        return SegmentationRequest(
            image=self.image,
            class_names=("disc",),
            student_mask=self.student,
            volume=self.volume,
            top_k=self.top_k,
        )


def _disc(row: int, column: int, radius: int, side: int = 200) -> AnyArray:
    rows, columns = np.mgrid[:side, :side]
    disc: AnyArray = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
    return disc


def _bright(*shown: AnyArray) -> AnyArray:
    image: AnyArray = np.where(np.any(shown, axis=0), 255, 0).astype(np.uint8)
    return image


NEAR, FAR, LARGE = _disc(60, 60, 16), _disc(150, 145, 20), _disc(90, 90, 80)
VOLUME = tuple(np.where(NEAR, 255 - 10 * z, 0).astype(np.uint8) for z in range(4))
MISLED = _bright(NEAR, FAR)
CASES = {
    "turns": Case(Corner, _bright(FAR), off=("focus",)),
    "focus": Case(Painting, _bright(NEAR), off=("turns",)),
    "votes": Case(Painting, MISLED, volume=(MISLED, *VOLUME), off=("turns",)),
    "own_share": Case(Echo, _bright(NEAR), student=FAR[None].astype(np.float32)),
    "student_window": Case(
        Echo, _bright(NEAR), student=FAR[None].astype(np.float32), off=("turns",)
    ),
    "keep_unsure": Case(Blind, _bright(NEAR), student=NEAR[None].astype(np.float32)),
}


def _engine(folder: Path, case: Case, *off: str) -> VessaEngine:
    engine = engine_of(folder, settings=without(*case.off, *off), templates=2)
    # Nearly the first template again, which adds nothing to it.
    image, labels = picture(100)
    image[0, 0] ^= 1
    engine.add_template(image, labels, CLASSES, name="copy")
    model_of(engine).__class__ = case.model
    return engine


def _same(one: SegmentationResult, other: SegmentationResult) -> bool:
    return (
        np.array_equal(one.labels, other.labels)
        and np.array_equal(one.confidence, other.confidence)
        and one.classes == other.classes
        and one.templates == other.templates
    )


def test_there_is_a_case_for_every_rule() -> None:
    assert list(CASES) == list(RULES)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_that_is_switched_off_changes_an_answer_and_only_that_one(
    tmp_path: Path, rule: str
) -> None:
    """Whatever the server has kept of other answers, and wherever it is switched off."""
    case = CASES[rule]
    engine = _engine(tmp_path / "one", case)
    without_it = dataclasses.replace(case.request, policy_off=(rule,))
    with_rule = engine.segment(case.request)
    off = engine.segment(without_it)
    assert not _same(with_rule, off)
    assert _same(engine.segment(case.request), with_rule)
    assert _same(_engine(tmp_path / "two", case).segment(without_it), off)
    assert _same(_engine(tmp_path / "three", case, rule).segment(case.request), off)
