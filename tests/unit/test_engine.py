from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from support import CLASSES, engine_of, model_of, picture, segment_together, tiny_model
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
from vessa_server.bank import BankError
from vessa_server.cache import open_cache
from vessa_server.engine import VessaEngine
from vessa_server.engine_settings import EngineSettings
from vessa_server.inference.look import Look, Prediction, TemplateLook
from vessa_server.runtime.torch_runtime import TorchRuntime

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
    assert set(second.stage_ms) == {"decode_image", "decode_mask", "restore"}
    assert not np.array_equal(first.confidence, second.confidence)


def test_results_do_not_depend_on_the_batch_bit_for_bit(tmp_path: Path) -> None:
    requests = [SegmentationRequest(image=picture(i)[0], request_id=str(i)) for i in range(4)]
    requests[2] = dataclasses.replace(requests[2], student_mask=LABELS, class_names=("disc",))
    requests[2] = dataclasses.replace(requests[2], student_mask=(LABELS == 1).astype(np.uint8))
    alone = [engine_of(tmp_path / "1").segment(r) for r in requests]
    together = segment_together(engine_of(tmp_path / "2"), requests)
    for one, other in zip(alone, together, strict=True):
        assert same(one, other)


def test_looks_in_the_pauses_of_another_change_nothing(tmp_path: Path) -> None:
    alone, shared = engine_of(tmp_path / "a"), engine_of(tmp_path / "b")

    def look(engine: VessaEngine, seed: int) -> Look:
        case = engine.open(SegmentationRequest(image=picture(seed)[0]))
        return case.look(case.whole)

    waiting = iter(range(1, 50))
    in_pauses: list[Prediction] = []
    (paused,) = shared.run(
        [look(shared, 0)], lambda: in_pauses.extend(shared.run([look(shared, next(waiting))]))
    )
    assert len(in_pauses) >= 5, "one after each step"
    for seed, prediction in enumerate([paused, *in_pauses]):
        (expected,) = alone.run([look(alone, seed)])
        assert np.array_equal(prediction.logits_CHW, expected.logits_CHW)
        # Templates were encoded in the first pause: the look that waited found them.
        assert prediction.templates_cached == (seed != 1)


def test_there_is_a_pause_after_each_template_that_is_encoded(tmp_path: Path) -> None:
    engine = engine_of(tmp_path, templates=3)
    looks = [TemplateLook(engine.bank, t, None) for t in engine.bank.snapshot().templates]
    pauses: list[int] = []
    engine.five_steps.run(looks, lambda: pauses.append(engine.templates.computed))
    assert pauses == [2, 4, 6], "two classes each"


def test_masks_that_are_not_finite_are_an_error_and_no_answer(tmp_path: Path) -> None:
    model = tiny_model()
    torch.nn.init.constant_(model.refinement.out.weight, float("nan"))
    with pytest.raises(FloatingPointError):
        engine_of(tmp_path, model=model).segment(SegmentationRequest(image=picture(0)[0]))


def test_a_fused_batch_is_one_forward_with_the_same_answers(tmp_path: Path) -> None:
    requests = [SegmentationRequest(image=picture(i)[0], return_probabilities=True) for i in (0, 1)]
    requests.append(dataclasses.replace(requests[0], student_mask=LABELS))
    exact = segment_together(engine_of(tmp_path / "1"), requests)
    engine = engine_of(tmp_path / "2", settings=EngineSettings(fuse=True))
    for one, other in zip(exact, segment_together(engine, requests), strict=True):
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
    runtime = TorchRuntime(model_of(other), "1" * 64)
    fresh = VessaEngine(runtime, other.banks, open_cache(address, 1 << 30))
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
    with pytest.raises(BankError, match="cannot be read"):
        engine.segment(REQUEST)
    engine.bank.delete(info.template_id)
    assert isinstance(engine.segment(REQUEST), SegmentationResult)
