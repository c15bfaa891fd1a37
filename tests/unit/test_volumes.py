"""Slices of a volume agree on where the structures are, with models that find what is bright."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finders import Corner, Painting
from support import engine_of, model_of, picture, without
from vessa_client import (
    InvalidRequestError,
    NotFoundError,
    Region,
    SegmentationRequest,
    UInt8Array,
    VessaError,
    files,
)
from vessa_client._types import ImageInput, ImageReference
from vessa_client.wire import MAX_VOLUME_SLICES
from vessa_server.engine import VessaEngine

SIDE = 200


def _disc(row: int, column: int, radius: int) -> npt.NDArray[np.bool_]:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    disc: npt.NDArray[np.bool_] = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
    return disc


TRUTH = _disc(60, 130, 18)
ELSEWHERE = _disc(150, 40, 24)


def _slices(count: int) -> list[UInt8Array]:
    """The structure, of another brightness in each slice."""
    return [np.where(TRUTH, 255 - 10 * z, 0).astype(np.uint8) for z in range(count)]


def _request(image: ImageInput, volume: tuple[ImageInput, ...]) -> SegmentationRequest:
    return SegmentationRequest(image=image, volume=volume, class_names=("disc",))


def _engine(folder: Path, kind: type, *off: str) -> VessaEngine:
    engine = engine_of(folder, settings=without(*off))
    model_of(engine).__class__ = kind
    return engine


def _iou(found: UInt8Array, truth: npt.NDArray[np.bool_]) -> float:
    shown = found > 0
    return float((shown & truth).sum() / (shown | truth).sum())


def test_a_slice_is_looked_at_where_the_others_have_the_structure(tmp_path: Path) -> None:
    image, *others = _slices(4)
    misled = np.where(ELSEWHERE, 255, image).astype(np.uint8)
    engine = _engine(tmp_path, Painting, "turns")
    alone = engine.segment(_request(misled, ())).labels
    assert (alone[ELSEWHERE] > 0).mean() > 0.8
    together = engine.segment(_request(misled, (misled, *others))).labels
    assert not together[ELSEWHERE].any()
    assert _iou(together, TRUTH) > 0.9


def test_a_volume_whose_place_was_forgotten_is_found_as_at_first(tmp_path: Path) -> None:
    images = _slices(4)
    images[0] = np.where(ELSEWHERE, 255, images[0]).astype(np.uint8)
    engine = _engine(tmp_path, Painting, "turns")
    places = []
    for shade in (90, 80):
        request = _request(np.where(TRUTH, shade, 0).astype(np.uint8), tuple(images))
        engine.segment(request)
        key = ("place", engine.open(request).volume_key)
        places.append(engine.memory.get(key))
        engine.memory.put(key, None, engine.memory.max_bytes + 1)
    assert places[0] is not None
    assert places[0] == places[1]


def test_slices_that_are_equal_are_looked_at_once(tmp_path: Path) -> None:
    images = _slices(2)
    engine = _engine(tmp_path, Painting, "turns", "focus")
    once = engine.segment(_request(images[0], tuple(images)))
    held = engine.memory.bytes
    again = _engine(tmp_path / "again", Painting, "turns", "focus")
    many = again.segment(_request(images[0], (*images, *images, images[1])))
    assert np.array_equal(once.labels, many.labels)
    assert again.memory.bytes == held


def test_the_volume_is_looked_at_once_whoever_asks_first(tmp_path: Path) -> None:
    images = _slices(3)
    extra = np.where(TRUTH, 90, 0).astype(np.uint8)
    answers = []
    for order in ((0, 1, 2), (2, 0, 1)):
        engine = _engine(tmp_path / str(order), Painting, "turns")
        found = {z: engine.segment(_request(images[z], tuple(images))) for z in order}
        cached = [found[z].image_features_cached for z in order]
        assert cached == [False, True, True]
        assert set(found[order[1]].stage_ms) == {"decode_image", "restore"}
        outside = engine.segment(_request(extra, tuple(images)))
        assert not outside.image_features_cached
        assert _iou(outside.labels, TRUTH) > 0.9
        answers.append([found[z] for z in range(3)] + [outside])
    for one, other in zip(*answers, strict=True):
        assert np.array_equal(one.labels, other.labels)
        assert np.array_equal(one.confidence, other.confidence)
        assert one.classes == other.classes


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("focus", [False, True])
def test_a_turned_volume_is_answered_as_the_upright_one(
    tmp_path: Path, turns: int, focus: bool
) -> None:
    corner = _disc(30, 30, 18)
    images = [np.where(corner, 250 - 10 * z, 0).astype(np.uint8) for z in range(3)]
    turned = tuple(np.ascontiguousarray(np.rot90(image, turns)) for image in images)
    engine = _engine(tmp_path, Corner, *[] if focus else ["focus"])
    result = engine.segment(_request(turned[0], turned))
    assert _iou(result.labels, np.rot90(corner, turns)) > 0.7
    assert result.classes[0].predicted_iou > 0.5
    region = result.region
    assert region is not None
    assert region.quarter_turns == -turns % 4, "turned upright again"
    rows = slice(region.top, region.top + region.height)
    columns = slice(region.left, region.left + region.width)
    assert np.rot90(corner, turns)[rows, columns].sum() > 0.9 * corner.sum()
    assert (region.height < SIDE) == focus


def test_whoever_says_where_to_look_is_believed(tmp_path: Path) -> None:
    corner = _disc(30, 30, 18)
    image = np.rot90(np.where(corner, 250, 0).astype(np.uint8), 1).copy()
    engine = _engine(tmp_path, Corner)
    found = engine.segment(_request(image, ()))
    there = found.region
    assert there is not None
    told = engine.segment(dataclasses.replace(_request(image, (image,)), region=there))
    assert told.region == there
    assert np.array_equal(told.labels, found.labels)
    elsewhere = Region(top=100, left=100, height=80, width=90, quarter_turns=2)
    beside = engine.segment(dataclasses.replace(_request(image, ()), region=elsewhere))
    assert beside.region == elsewhere
    assert not beside.labels[:100].any()
    assert not beside.labels[:, :100].any()


@pytest.mark.parametrize(
    ("region", "field"),
    [
        (Region(top=0, left=0, height=0, width=5), "region"),
        (Region(top=150, left=0, height=60, width=5), "region"),
        (Region(top=0, left=SIDE, height=5, width=1), "region"),
        (Region(top=-1, left=0, height=5, width=5), "region"),
        (Region(top=0, left=0, height=5, width=5, quarter_turns=4), "region.quarter_turns"),
    ],
)
def test_regions_beside_the_image_are_refused(tmp_path: Path, region: Region, field: str) -> None:
    request = dataclasses.replace(_request(_slices(1)[0], ()), region=region)
    with pytest.raises(InvalidRequestError) as caught:
        _engine(tmp_path, Painting).segment(request)
    assert caught.value.field == field


def test_a_students_mask_is_repaired_in_the_volumes_window(tmp_path: Path) -> None:
    images = tuple(_slices(3))
    engine = _engine(tmp_path, Painting, "turns")
    request = _request(images[1], images)
    engine.segment(request)
    told = dataclasses.replace(request, student_mask=TRUTH[None].astype(np.float32))
    again = engine.segment(told)
    assert again.image_features_cached
    assert _iou(again.labels, TRUTH) > 0.9


def test_a_volume_of_real_features_is_deterministic_and_has_no_empty_answers(
    tmp_path: Path,
) -> None:
    images = tuple(picture(seed)[0] for seed in range(4))
    results = [
        engine_of(tmp_path / name).segment(SegmentationRequest(image=images[0], volume=images))
        for name in ("a", "b")
    ]
    assert np.array_equal(results[0].labels, results[1].labels)
    assert np.array_equal(results[0].confidence, results[1].confidence)


@pytest.mark.parametrize(
    ("volume", "kind", "field", "words"),
    [
        ((np.zeros((SIDE, SIDE + 1), np.uint8),), InvalidRequestError, "volume", "expected"),
        ((np.zeros((SIDE, SIDE), np.uint8),) * 33, InvalidRequestError, "volume", "at most 32"),
        ((np.zeros((SIDE, SIDE, 3), np.uint8),), InvalidRequestError, "volume", "shape"),
        ((b"no image",), InvalidRequestError, "image.encoded", "PNG"),
        ((ImageReference("0" * 64),), NotFoundError, "image.ref", "send the image"),
    ],
)
def test_wrong_volumes_name_the_field(
    tmp_path: Path, volume: tuple[ImageInput, ...], kind: type[VessaError], field: str, words: str
) -> None:
    engine = _engine(tmp_path, Painting)
    with pytest.raises(kind) as raised:
        engine.segment(_request(_slices(1)[0], volume))
    assert raised.value.field == field
    assert words in raised.value.message


@given(count=st.integers(1, 300), most=st.integers(1, 40))
def test_spread_slices_are_different_and_cover_the_volume(count: int, most: int) -> None:
    chosen = files.spread(count, most)
    assert len(set(chosen)) == len(chosen) == min(count, most)
    assert chosen == sorted(chosen)
    gaps = np.diff([-1, *chosen, count])
    assert gaps.min() > 0
    assert gaps.max() <= 2 * np.ceil(count / len(chosen))


@given(depth=st.integers(1, 60))
def test_a_sample_of_a_file_is_slices_of_it(depth: int) -> None:
    pixels = np.arange(depth)[:, None, None] * np.ones((1, 2, 3), np.int16)
    file = files.ImageFile(Path("volume.nii.gz"), pixels, 0, None)
    sample = [int(slice_[0, 0]) for slice_ in file.sample(MAX_VOLUME_SLICES)]
    assert sample == files.spread(depth, MAX_VOLUME_SLICES)
    assert file.sample(0) == ()
    assert files.ImageFile(Path("picture.png"), pixels[0], None, None).sample() == ()


@given(count=st.integers(2, 30), depth=st.integers(1, 20), most=st.integers(1, 12))
def test_frames_of_a_film_are_sampled_at_the_same_heights(
    count: int, depth: int, most: int
) -> None:
    pixels = np.arange(depth)[:, None, None] * np.ones((1, 2, 3), np.int16)
    film = [files.ImageFile(Path(f"{t}.nii.gz"), 100 * t + pixels, 0, None) for t in range(count)]
    sample = [divmod(int(slice_[0, 0]), 100) for slice_ in files.sample(film, most)]
    assert len(sample) <= most
    heights = files.spread(depth, most // 2)
    assert sample == [(t, z) for t in files.spread(count, 2) for z in heights]
