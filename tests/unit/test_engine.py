from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support import CLASSES, engine_of, picture, tiny_model
from vessa_client import (
    AnyArray,
    ImageReference,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    SegmentationRequest,
    SegmentationResult,
    VessaError,
)
from vessa_server.cache import open_cache
from vessa_server.engine import EngineSettings, VessaEngine
from vessa_server.engine.work import MORE_OWN_MARGIN
from vessa_server.model.vessa import Conditioned, Decoded, ImageFeatures, Vessa

IMAGE, LABELS = picture(0)
REQUEST = SegmentationRequest(image=IMAGE, return_probabilities=True)


def same(one: SegmentationResult, other: SegmentationResult) -> bool:
    """Equal in everything but times and cache states."""
    arrays = ("labels", "confidence", "probabilities")
    plain = ("classes", "templates", "model_digest", "bank_version", "image_sha256")
    return all(np.array_equal(getattr(one, n), getattr(other, n)) for n in arrays) and all(
        getattr(one, n) == getattr(other, n) for n in plain
    )


def test_the_result_has_the_images_size_and_the_asked_classes(engine: VessaEngine) -> None:
    result = engine.segment(REQUEST)
    assert result.labels.shape == result.confidence.shape == IMAGE.shape
    assert [c.class_name for c in result.classes] == ["disc", "bar"]
    assert result.probabilities is not None
    assert result.probabilities.shape == (2, *IMAGE.shape)
    assert result.labels.max() <= 2
    one = engine.segment(dataclasses.replace(REQUEST, class_names=("bar",)))
    assert [c.class_name for c in one.classes] == ["bar"]
    assert one.labels.max() <= 1


def test_labels_are_the_argmax_and_confidence_its_probability(engine: VessaEngine) -> None:
    result = engine.segment(REQUEST)
    assert result.probabilities is not None
    classes = result.probabilities.astype(int)
    background = 255 - classes.sum(axis=0)
    stacked = np.concatenate([background[None], classes])
    best = np.take_along_axis(stacked, result.labels[None].astype(int), axis=0)[0]
    assert int((stacked.max(axis=0) - best).max()) <= 3  # rounding to bytes
    assert int(np.abs(best - result.confidence).max()) <= 3


def test_a_second_request_with_a_student_mask_only_decodes(engine: VessaEngine) -> None:
    first = engine.segment(SegmentationRequest(image=IMAGE))
    assert not first.image_features_cached
    assert {"encode_image", "match", "remember", "reason", "decode_mask"} <= set(first.stage_ms)
    request = SegmentationRequest(image=ImageReference(first.image_sha256), student_mask=LABELS)
    engine.segment(request)  # the student's window may be new
    second = engine.segment(request)
    assert second.image_features_cached
    assert second.template_features_cached
    assert set(second.stage_ms) == {"decode_image", "decode_mask"}
    assert not np.array_equal(first.confidence, second.confidence)


def test_results_do_not_depend_on_the_batch_bit_for_bit(tmp_path: Path) -> None:
    requests = [SegmentationRequest(image=picture(i)[0], request_id=str(i)) for i in range(4)]
    requests[2] = dataclasses.replace(requests[2], student_mask=LABELS, class_names=("disc",))
    requests[2] = dataclasses.replace(requests[2], student_mask=(LABELS == 1).astype(np.uint8))
    alone = [engine_of(tmp_path / "1").segment(r) for r in requests]
    together = engine_of(tmp_path / "2").segment_batch(requests)
    for one, other in zip(alone, together, strict=True):
        assert isinstance(other, SegmentationResult)
        assert same(one, other)


def test_a_fused_batch_is_one_forward_with_the_same_answers(tmp_path: Path) -> None:
    requests = [SegmentationRequest(image=picture(i)[0], return_probabilities=True) for i in (0, 1)]
    requests.append(dataclasses.replace(requests[0], student_mask=LABELS))
    exact = engine_of(tmp_path / "1").segment_batch(requests)
    fused = engine_of(tmp_path / "2", settings=EngineSettings(fuse=True)).segment_batch(requests)
    for one, other in zip(exact, fused, strict=True):
        assert isinstance(one, SegmentationResult)
        assert isinstance(other, SegmentationResult)
        assert one.probabilities is not None
        assert other.probabilities is not None
        difference = one.probabilities.astype(int) - other.probabilities.astype(int)
        assert int(np.abs(difference).max()) <= 1


@pytest.mark.parametrize("address", ["disk", "redis"])
def test_answers_from_a_warm_cache_are_the_same_bit_for_bit(
    tmp_path: Path, address: str, redis_url: str
) -> None:
    address = redis_url if address == "redis" else str(tmp_path / "cache")
    expected = engine_of(tmp_path / "a").segment(REQUEST)
    cold = engine_of(tmp_path / "b", cache=open_cache(address, 1 << 30))
    assert same(cold.segment(REQUEST), expected)
    warm = engine_of(tmp_path / "c", cache=open_cache(address, 1 << 30))
    result = warm.segment(REQUEST)
    assert result.template_features_cached
    assert warm.templates.computed == 0
    assert same(result, expected)


def test_other_weights_do_not_read_each_others_cache(tmp_path: Path) -> None:
    address = str(tmp_path / "cache")
    engine_of(tmp_path / "a", cache=open_cache(address, 1 << 30)).segment(REQUEST)
    other = engine_of(tmp_path / "a", model=tiny_model(3), templates=0)
    fresh = VessaEngine(other.model, "1" * 64, other.bank, open_cache(address, 1 << 30))
    assert not fresh.segment(REQUEST).template_features_cached
    assert same(
        dataclasses.replace(fresh.segment(REQUEST), model_digest=""),
        dataclasses.replace(other.segment(REQUEST), model_digest=""),
    )


def test_a_changed_bank_is_used_at_once(engine: VessaEngine) -> None:
    first = engine.segment(REQUEST)
    info, _ = engine.add_template(IMAGE, LABELS, CLASSES, name="the image itself")
    second = engine.segment(REQUEST)
    assert second.bank_version != first.bank_version
    assert info.template_id in {t.template_id for t in second.templates}
    engine.bank.delete(info.template_id)
    assert same(engine.segment(REQUEST), first)


def test_named_templates_and_top_k_are_obeyed(engine: VessaEngine) -> None:
    ids = [t.template_id for t in engine.bank.snapshot().templates]
    result = engine.segment(dataclasses.replace(REQUEST, template_ids=(ids[1],), top_k=3))
    assert {t.template_id for t in result.templates} == {ids[1]}
    result = engine.segment(dataclasses.replace(REQUEST, top_k=1))
    assert len(result.templates) == 2


def test_words_are_given_where_they_are_asked_for(engine: VessaEngine) -> None:
    assert engine.segment(REQUEST).classes[0].explanation == ""
    result = engine.segment(dataclasses.replace(REQUEST, explain=True))
    assert "explain" in result.stage_ms


def test_text_changes_the_answer(engine: VessaEngine) -> None:
    plain = engine.segment(REQUEST)
    told = engine.segment(dataclasses.replace(REQUEST, text="the left one"))
    assert plain.probabilities is not None
    assert told.probabilities is not None
    assert not np.array_equal(plain.probabilities, told.probabilities)


def _wrong(**changes: object) -> SegmentationRequest:
    values: dict[str, object] = {"image": IMAGE, **changes}
    return SegmentationRequest(**values)  # type: ignore[arg-type]


THREE = np.zeros((3, *IMAGE.shape), np.float32)


@pytest.mark.parametrize(
    ("request_", "kind", "field", "words"),
    [
        (_wrong(image=IMAGE[None, None]), InvalidRequestError, "image", r"\(H, W\) or"),
        (_wrong(image=IMAGE.astype(bool)), InvalidRequestError, "image", "dtype bool"),
        (_wrong(image=IMAGE[:4]), InvalidRequestError, "image", "at least 8"),
        (_wrong(image=np.full((9, 9), np.nan)), InvalidRequestError, "image", "NaN"),
        (_wrong(image=np.zeros((8, 5000), np.uint8)), OverloadedError, "image", "at most 4096"),
        (_wrong(image=b"no image"), InvalidRequestError, "image.encoded", "expected PNG"),
        (_wrong(image=ImageReference("0" * 64)), NotFoundError, "image.ref", "send the image"),
        (_wrong(class_names=("liver",)), NotFoundError, "class_names", "expected one of disc, bar"),
        (_wrong(class_names=("bar", "bar")), InvalidRequestError, "class_names", "once"),
        (_wrong(top_k=99), InvalidRequestError, "options.top_k", r"1\.\.7"),
        (_wrong(template_ids=("x",)), NotFoundError, "options.template_ids", "no template 'x'"),
        (_wrong(text="x" * 500), InvalidRequestError, "text", "at most 400"),
        (_wrong(student_mask=LABELS[1:]), InvalidRequestError, "student_mask.label_map", "size"),
        (_wrong(student_mask=LABELS + 2), InvalidRequestError, "student_mask.label_map", "0..2"),
        (_wrong(student_mask=THREE), InvalidRequestError, "student_mask.probabilities", "shape"),
        (
            _wrong(student_mask=THREE[:2] + 2),
            InvalidRequestError,
            "student_mask.probabilities",
            "outside",
        ),
    ],
)
def test_wrong_requests_name_the_field_and_the_fix(
    engine: VessaEngine,
    request_: SegmentationRequest,
    kind: type[VessaError],
    field: str,
    words: str,
) -> None:
    with pytest.raises(kind, match=words) as caught:
        engine.segment(request_)
    assert caught.value.field == field
    good, bad = engine.segment_batch([REQUEST, request_])
    assert isinstance(good, SegmentationResult)
    assert isinstance(bad, VessaError)


def test_an_empty_bank_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="vessa templates add"):
        engine_of(tmp_path, templates=0).segment(REQUEST)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
def test_dtype_does_not_change_the_answer(engine: VessaEngine, dtype: str) -> None:
    image: AnyArray = IMAGE.astype(dtype)
    assert np.array_equal(
        engine.segment(_wrong(image=image)).labels, engine.segment(REQUEST).labels
    )


def test_evicted_images_are_not_found(tmp_path: Path) -> None:
    small = EngineSettings(image_store_bytes=IMAGE.nbytes + 10)
    engine = engine_of(tmp_path, settings=small)
    first = engine.segment(REQUEST)
    engine.segment(dataclasses.replace(REQUEST, image=picture(1)[0]))
    with pytest.raises(NotFoundError):
        engine.segment(dataclasses.replace(REQUEST, image=ImageReference(first.image_sha256)))


def test_a_damaged_template_fails_alone(engine: VessaEngine) -> None:
    info, _ = engine.add_template(IMAGE, LABELS, [CLASSES[0], CLASSES[1]], name="broken")
    (engine.bank.folder / "templates" / info.template_id / "image.png").write_bytes(b"x")
    outcomes = engine.segment_batch([REQUEST])
    assert isinstance(outcomes[0], VessaError)
    assert "cannot be read" in str(outcomes[0])
    engine.bank.delete(info.template_id)
    assert isinstance(engine.segment(REQUEST), SegmentationResult)


class _Painting(Vessa):
    """Finds what is bright, whatever the templates say."""

    def decode(
        self,
        features: ImageFeatures,
        image_P: torch.Tensor,
        conditioned: Conditioned,
        student_P1HW: torch.Tensor | None,
        has_student_P: torch.Tensor | None,
    ) -> Decoded:
        bright = features.detail_BCHW[image_P].mean(dim=1, keepdim=True)
        pairs = len(image_P)
        return Decoded(10 * (bright - 1), torch.ones(pairs), torch.ones(pairs))


def test_small_structures_get_a_second_look_which_is_sharper(tmp_path: Path) -> None:
    """The canvas has 64 pixels; the image 400, of which the structure takes 40."""
    image = np.zeros((400, 400), np.uint8)
    rows, columns = np.mgrid[:400, :400]
    truth = (rows - 301) ** 2 + (columns - 87) ** 2 < 20**2
    image[truth] = 255
    errors, seen = [], []
    for focus in (False, True):
        engine = engine_of(tmp_path / str(focus), settings=EngineSettings(focus=focus))
        engine.model.__class__ = _Painting
        request = SegmentationRequest(image=image, class_names=("disc",))
        result = engine.segment(request)
        errors.append(int(((result.labels > 0) != truth).sum()))
        again = engine.segment(request)
        assert again.image_features_cached
        assert np.array_equal(again.labels, result.labels)
        seen.append(engine.pipeline.features.bytes)
    assert errors[1] < errors[0] / 2
    assert seen[1] > seen[0]


def test_a_batch_of_second_looks_is_each_image_alone(tmp_path: Path) -> None:
    images = [picture(seed)[0] for seed in range(3)]
    requests = [SegmentationRequest(image=i, return_probabilities=True) for i in images]
    fused = engine_of(tmp_path / "a", settings=EngineSettings(fuse=True))
    alone = engine_of(tmp_path / "b", settings=EngineSettings())
    for found, request in zip(fused.segment_batch(requests), requests, strict=True):
        assert isinstance(found, SegmentationResult)
        expected = alone.segment(request)
        assert found.probabilities is not None
        assert expected.probabilities is not None
        difference = found.probabilities.astype(int) - expected.probabilities.astype(int)
        assert int(np.abs(difference).max()) <= 2


class _Corner(_Painting):
    """Sure of itself where the bright part is at the top left of the view."""

    def decode(self, *arguments: Any) -> Decoded:
        found = super().decode(*arguments)
        side = found.logits_P1HW.shape[-1] // 2
        there_P = (found.logits_P1HW[..., :side, :side] > 0).flatten(1).any(dim=1)
        sureness_P = torch.where(there_P, 1.0, 0.01)
        logits = found.logits_P1HW * sureness_P[:, None, None, None]
        return Decoded(logits, found.iou_P, found.presence_P)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("row", "column"), [(20, 20), (20, 90), (100, 20), (100, 90)])
def test_turned_images_are_answered_in_their_own_frame(
    tmp_path: Path, row: int, column: int, turned: bool
) -> None:
    rows, columns = np.mgrid[:120, :110]
    truth = (rows - row) ** 2 + (columns - column) ** 2 < 15**2
    engine = engine_of(tmp_path, settings=EngineSettings(turn=turned, focus=False))
    engine.model.__class__ = _Corner
    image = np.where(truth, 255, 0).astype(np.uint8)
    result = engine.segment(SegmentationRequest(image=image, class_names=("disc",)))
    found = result.labels > 0
    assert (found & truth).sum() / (found | truth).sum() > 0.85
    iou = result.classes[0].predicted_iou
    assert iou > 0.5 if turned or (row, column) == (20, 20) else iou < 0.1


class _Follower(_Painting):
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
    engine = engine_of(tmp_path, settings=EngineSettings(turn=False))
    engine.model.__class__ = _Follower
    request = SegmentationRequest(image=image, class_names=("disc",))
    engine.segment(request)
    held = engine.pipeline.features.bytes
    same = engine.segment(dataclasses.replace(request, student_mask=near.astype(np.uint8)))
    assert same.classes[0].predicted_iou > 0.8
    assert engine.pipeline.features.bytes == held
    other = engine.segment(dataclasses.replace(request, student_mask=far.astype(np.uint8)))
    grown = engine.pipeline.features.bytes
    assert grown > held
    assert "encode_image" in other.stage_ms
    again = engine.segment(dataclasses.replace(request, student_mask=far.astype(np.uint8)))
    assert engine.pipeline.features.bytes == grown
    assert "encode_image" not in again.stage_ms
    assert np.array_equal(again.labels, other.labels)


class _Judge(_Painting):
    """Follows the prompt, and likes it more by ``gain`` with a tenth of VESSA's own in it."""

    gain = 0.0

    def decode(self, *arguments: Any) -> Decoded:
        found = super().decode(*arguments)
        student = arguments[3]
        if student is None:
            return found
        bright = found.logits_P1HW > 0
        own_P = (student * bright).flatten(1).sum(dim=1) / bright.flatten(1).sum(dim=1)
        more_P = own_P > 0.1
        logits = torch.where(more_P[:, None, None, None], found.logits_P1HW, 10 * student - 5)
        return Decoded(logits, 0.7 + self.gain * more_P, found.presence_P)


@pytest.mark.parametrize("gain", [MORE_OWN_MARGIN - 0.01, MORE_OWN_MARGIN + 0.01])
def test_more_of_vessas_own_answer_counts_where_the_decoder_expects_clearly_more_of_it(
    tmp_path: Path, gain: float
) -> None:
    rows, columns = np.mgrid[:64, :64]
    own, told = ((rows - r) ** 2 + (columns - 32) ** 2 < 10**2 for r in (20, 44))
    engine = engine_of(tmp_path, settings=EngineSettings(turn=False, focus=False))
    engine.model.__class__ = type("_Judge", (_Judge,), {"gain": gain})
    image = np.where(own, 255, 0).astype(np.uint8)
    request = SegmentationRequest(image=image, class_names=("disc",))
    answer = engine.segment(dataclasses.replace(request, student_mask=told.astype(np.uint8)))
    expected = own if gain > MORE_OWN_MARGIN else told
    found = answer.labels > 0
    assert (found & expected).sum() / (found | expected).sum() > 0.8


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
    engine = engine_of(tmp_path, settings=EngineSettings(turn=False, focus=False))
    engine.model.__class__ = _Unsure
    alone = engine.segment(REQUEST)
    assert not alone.labels.any()
    helped = engine.segment(dataclasses.replace(REQUEST, student_mask=LABELS))
    assert np.array_equal(helped.labels, np.where(LABELS == 1, 1, 0))
    sure = helped.confidence[LABELS == 1] / 255
    assert float(sure.max()) < 0.95, "kept is not certain"


def test_where_to_look_does_not_depend_on_a_students_mask(tmp_path: Path) -> None:
    student = np.zeros_like(LABELS)
    student[5:13, 5:13] = 1
    answers = []
    for name, first in (("a", REQUEST), ("b", dataclasses.replace(REQUEST, student_mask=student))):
        engine = engine_of(tmp_path / name, settings=EngineSettings(turn=False))
        engine.model.__class__ = _Unsure
        engine.segment(first)
        answers.append(engine.segment(REQUEST))
    assert np.array_equal(answers[0].confidence, answers[1].confidence)
