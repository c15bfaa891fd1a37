"""Views of an image, and what students' masks do, with models that find what they are told to."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from finders import Corner, Painting
from support import engine_of, model_of, picture, segment_together, without
from vessa_client import SegmentationRequest
from vessa_server.engine_settings import EngineSettings
from vessa_server.model.reasoner import VisualTokens
from vessa_server.model.vessa import Decoded, Reasoned, Vessa

IMAGE, LABELS = picture(0)
REQUEST = SegmentationRequest(image=IMAGE, return_probabilities=True)


def test_small_structures_get_a_second_look_which_is_sharper(tmp_path: Path) -> None:
    """The canvas has 64 pixels; the image 400, of which the structure takes 40."""
    image = np.zeros((400, 400), np.uint8)
    rows, columns = np.mgrid[:400, :400]
    truth = (rows - 301) ** 2 + (columns - 87) ** 2 < 20**2
    image[truth] = 255
    errors, seen = [], []
    for focus in (False, True):
        engine = engine_of(tmp_path / str(focus), settings=without(*[] if focus else ["focus"]))
        model_of(engine).__class__ = Painting
        request = SegmentationRequest(image=image, class_names=("disc",))
        result = engine.segment(request)
        errors.append(int(((result.labels > 0) != truth).sum()))
        again = engine.segment(request)
        assert again.image_features_cached
        assert np.array_equal(again.labels, result.labels)
        seen.append(engine.memory.bytes)
    assert errors[1] < errors[0] / 2
    assert seen[1] > seen[0]


def test_an_image_may_show_more_structures_than_any_template(tmp_path: Path) -> None:
    """Nine discs, and templates that show one each."""
    rows, columns = np.mgrid[:120, :120] % 40
    truth = (rows - 20) ** 2 + (columns - 20) ** 2 < 9**2
    engine = engine_of(tmp_path)
    model_of(engine).__class__ = Painting
    image = np.where(truth, 255, 0).astype(np.uint8)
    found = engine.segment(SegmentationRequest(image=image, class_names=("disc",))).labels > 0
    assert ndimage.label(found)[1] == 9
    assert (found & truth).sum() == found.sum() > truth.sum() / 2


def test_a_batch_of_second_looks_is_each_image_alone(tmp_path: Path) -> None:
    images = [picture(seed)[0] for seed in range(3)]
    requests = [SegmentationRequest(image=i, return_probabilities=True) for i in images]
    fused = engine_of(tmp_path / "a", settings=EngineSettings(fuse=True))
    alone = engine_of(tmp_path / "b", settings=EngineSettings())
    for found, request in zip(segment_together(fused, requests), requests, strict=True):
        expected = alone.segment(request)
        assert found.probabilities is not None
        assert expected.probabilities is not None
        difference = found.probabilities.astype(int) - expected.probabilities.astype(int)
        assert int(np.abs(difference).max()) <= 2


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("row", "column"), [(20, 20), (20, 90), (100, 20), (100, 90)])
def test_turned_images_are_answered_in_their_own_frame(
    tmp_path: Path, row: int, column: int, turned: bool
) -> None:
    rows, columns = np.mgrid[:120, :110]
    truth = (rows - row) ** 2 + (columns - column) ** 2 < 15**2
    engine = engine_of(tmp_path, settings=without("focus", *[] if turned else ["turns"]))
    model_of(engine).__class__ = Corner
    image = np.where(truth, 255, 0).astype(np.uint8)
    result = engine.segment(SegmentationRequest(image=image, class_names=("disc",)))
    found = result.labels > 0
    assert (found & truth).sum() / (found | truth).sum() > 0.85
    iou = result.classes[0].predicted_iou
    assert iou > 0.5 if turned or (row, column) == (20, 20) else iou < 0.1


class _Follower(Painting):
    """As sure as its mask agrees with the student's."""

    def decode(self, *arguments: Any) -> Decoded:
        found = super().decode(*arguments)
        student = arguments[3]
        pairs = len(found.iou_P)
        share = torch.full((pairs,), 0.5)
        if student is not None:
            both = ((student > 0.5) & (found.logits_P1HW > 0)).flatten(1).sum(dim=1)
            share = both / (student > 0.5).flatten(1).sum(dim=1).clamp(min=1)
        return Decoded(found.logits_P1HW, share, found.presence_P)


def test_a_student_that_found_the_structure_elsewhere_moves_the_window(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:300, :300]
    near, far = ((rows - r) ** 2 + (columns - r) ** 2 < 15**2 for r in (60, 240))
    image = np.where(near, 255, 0).astype(np.uint8)
    engine = engine_of(tmp_path, settings=without("turns"))
    model_of(engine).__class__ = _Follower
    request = SegmentationRequest(image=image, class_names=("disc",))
    engine.segment(request)
    held = engine.memory.bytes
    same = engine.segment(dataclasses.replace(request, student_mask=near.astype(np.uint8)))
    assert same.classes[0].predicted_iou > 0.8
    assert engine.memory.bytes == held
    other = engine.segment(dataclasses.replace(request, student_mask=far.astype(np.uint8)))
    grown = engine.memory.bytes
    assert grown > held
    assert "encode_image" in other.stage_ms
    again = engine.segment(dataclasses.replace(request, student_mask=far.astype(np.uint8)))
    assert engine.memory.bytes == grown
    assert "encode_image" not in again.stage_ms
    assert np.array_equal(again.labels, other.labels)


class _Unsure(Vessa):
    """Sure of the second class alone, which it finds nowhere."""

    def decode(self, *arguments: Any) -> Decoded:
        found = super().decode(*arguments)
        return Decoded(
            torch.full_like(found.logits_P1HW, -1.0),
            torch.tensor([0.1, 0.9]).repeat(len(found.iou_P) // 2),
            torch.zeros_like(found.presence_P),
        )


def test_where_vessa_is_unsure_a_students_structure_stays_as_it_came(tmp_path: Path) -> None:
    engine = engine_of(tmp_path, settings=without("turns", "focus"))
    model_of(engine).__class__ = _Unsure
    alone = engine.segment(REQUEST)
    assert not alone.labels.any()
    probabilities = np.stack([LABELS == 1, LABELS == 2]).astype(np.float32)
    helped = engine.segment(dataclasses.replace(REQUEST, student_mask=probabilities))
    assert np.array_equal(helped.labels, np.where(LABELS == 1, 1, 0))
    sure = helped.confidence[LABELS == 1] / 255
    assert float(sure.max()) < 0.95, "kept is not certain"
    helped = engine.segment(dataclasses.replace(REQUEST, student_mask=LABELS))
    assert np.array_equal(helped.labels, np.where(LABELS == 1, 1, 0))


def test_where_to_look_does_not_depend_on_a_students_mask(tmp_path: Path) -> None:
    student = np.zeros_like(LABELS)
    student[5:13, 5:13] = 1
    answers = []
    for name, first in (("a", REQUEST), ("b", dataclasses.replace(REQUEST, student_mask=student))):
        engine = engine_of(tmp_path / name, settings=without("turns"))
        model_of(engine).__class__ = _Unsure
        engine.segment(first)
        answers.append(engine.segment(REQUEST))
    assert np.array_equal(answers[0].confidence, answers[1].confidence)


class _Pointing(Vessa):
    """Finds nothing but what the map of ``<SEG>`` points to, which is one of two structures."""

    def reason(self, *arguments: Any) -> Reasoned:
        found = super().reason(*arguments)
        columns = torch.arange(found.seg_map_P1HW.shape[-1])
        left = torch.where(columns < len(columns) // 2, 2.0, -2.0)
        return Reasoned(found.seg_P1D, left.expand_as(found.seg_map_P1HW), found.loss)

    def decode(self, *arguments: Any) -> Decoded:
        found = super().decode(*arguments)
        size = found.logits_P1HW.shape[-1]
        logits = torch.nn.functional.interpolate(arguments[2].seg_map_P1HW, size=size)
        return Decoded(logits, found.iou_P, torch.ones_like(found.presence_P))


def test_the_vlm_is_asked_only_where_a_request_has_a_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one it neither changes the answer nor takes time; its words are there if asked."""
    engine = engine_of(tmp_path, settings=without("turns", "focus"))
    model_of(engine).__class__ = _Pointing
    seen: list[int] = []
    see = model_of(engine).reasoner.see

    def watched(images: torch.Tensor) -> VisualTokens:
        seen.append(len(images))
        return see(images)

    monkeypatch.setattr(model_of(engine).reasoner, "see", watched)
    request = dataclasses.replace(REQUEST, class_names=("disc",))
    sure = []
    for text in ("", "the left one", ""):
        result = engine.segment(dataclasses.replace(request, text=text))
        assert result.probabilities is not None
        sure.append(float(torch.logit(torch.tensor(result.probabilities[-1, 4, 4] / 255))))
        assert bool(seen) == bool(text)
        seen.clear()
    assert sure == [pytest.approx(value, abs=0.05) for value in (0, 2, 0)]
    explained = engine.segment(dataclasses.replace(request, explain=True))
    assert seen
    assert explained.probabilities is not None
    assert float(explained.probabilities[-1, 4, 4]) == pytest.approx(127.5, abs=1)
