"""Regions of interest: maps to them and back, who names them, the network that finds them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ssl_trainer.assistant import pipeline
from ssl_trainer.data import batches, cases, frame
from ssl_trainer.data.frame import Roi
from ssl_trainer.data.slices import Slice, read_slices
from ssl_trainer.evaluation.predictor import Predictor
from ssl_trainer.models.weights import WeightsError
from ssl_trainer.regions import find, run, training
from ssl_trainer.regions.locator import SIZE, Locator, square
from trainer_support import (
    AFFINE,
    regions,
    single_slices,
    small_config,
    transforms,
    write_dataset,
)
from vessa_client import Region, UInt8Array, files
from vessa_server.model.preprocess import Canvas

CPU = torch.device("cpu")
SHAPE = (40, 52)
SHAPES = st.tuples(st.integers(20, 90), st.integers(20, 90))


def _square(matrix: frame.Theta) -> frame.Theta:
    return np.concatenate([matrix, [[0.0, 0.0, 1.0]]])


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 40), st.integers(0, 3))
def test_the_canvas_is_the_square_turned_counter_clockwise(
    top: int, left: int, side: int, turns: int
) -> None:
    """Against ``np.rot90`` of the same pixels, with zeros where they lie beyond the slice."""
    image = np.random.default_rng(0).uniform(0.1, 1, SHAPE).astype(np.float32)
    beyond = np.pad(image, ((0, 40), (0, 40)))
    expected = np.rot90(beyond[top : top + side, left : left + side], turns)
    matrix = frame.theta(SHAPE, Roi(top + side / 2, left + side / 2, side, turns))
    found = frame.resample(torch.from_numpy(image)[None], matrix, side, mode="bilinear")
    assert np.allclose(found[0], expected, atol=1e-3)


@given(roi=regions(SHAPE), transform=transforms())
def test_a_view_of_a_region_is_a_view_of_its_canvas(
    roi: Roi, transform: frame.WeakTransform
) -> None:
    view = _square(frame.theta(SHAPE, roi, transform))
    canvas, of_canvas = frame.theta(SHAPE, roi), frame.theta((1, 1), transform=transform)
    assert np.allclose(view, _square(canvas) @ _square(of_canvas), atol=1e-9)


@settings(max_examples=60)
@given(data=st.data(), shape=SHAPES, transform=transforms())
def test_maps_of_a_view_come_back_to_where_they_were(
    data: st.DataObject, shape: tuple[int, int], transform: frame.WeakTransform
) -> None:
    roi = data.draw(regions(shape))
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    image = torch.from_numpy((1 + rows / shape[0] + 2 * columns / shape[1]).astype(np.float32))
    matrix = frame.theta(shape, roi, transform)
    view = frame.resample(image[None], matrix, 256, mode="bilinear")
    back = frame.restore(view, shape, roi, transform)[0].numpy()
    # Where each pixel is in the view, whose borders are at 1.
    places = np.stack([2 * columns + 1, 2 * rows + 1], axis=-1) / np.array(shape[::-1]) - 1
    inverse = np.linalg.inv(_square(matrix))
    beyond = np.abs(places @ inverse[:2, :2].T + inverse[:2, 2]).max(axis=-1)
    assert not back[beyond > 1.001].any()
    inner = np.zeros(shape, bool)
    inner[3:-3, 3:-3] = True
    seen = inner & (beyond < 0.95)
    assert np.abs(back - image.numpy())[seen].max(initial=0) < 0.1


@given(roi=regions(SHAPE, inside=True))
def test_without_a_region_the_whole_slice_is_seen(roi: Roi) -> None:
    assert np.array_equal(frame.theta(SHAPE), frame.theta(SHAPE, Roi.whole(SHAPE)))
    assert frame.size_of_whole(SHAPE, 64, None) == 64
    assert frame.size_of_whole(SHAPE, 64, roi) == pytest.approx(64 * 52 / roi.side, abs=0.5)


@given(st.integers(0, 2**32 - 1), st.floats(1, 2), st.integers(0, 3))
def test_a_region_around_structures_encloses_them(seed: int, margin: float, turns: int) -> None:
    rng = np.random.default_rng(seed)
    shown = rng.random(SHAPE) < rng.choice([0.002, 0.05])
    assume(shown.any())
    roi = Roi.around(shown, margin, turns)
    rows, columns = np.nonzero(shown)
    ends = np.array([rows.min(), rows.max() + 1]), np.array([columns.min(), columns.max() + 1])
    for middle, (first, last) in zip((roi.row, roi.column), ends, strict=True):
        assert middle - roi.side / 2 <= first < last <= middle + roi.side / 2
        assert middle == (first + last) / 2
    assert roi.side == pytest.approx(margin * max(np.ptp(end) for end in ends))
    assert roi.quarter_turns == turns


@given(roi=regions(SHAPE), view=regions(SHAPE), transform=transforms())
def test_places_are_in_a_region_or_not(roi: Roi, view: Roi, transform: frame.WeakTransform) -> None:
    matrix = frame.theta(SHAPE, view, transform)
    found = roi.contains(frame.grid(matrix, 6), SHAPE)
    for row, column in np.ndindex(6, 6):
        x, y = matrix @ [(2 * column + 1) / 6 - 1, (2 * row + 1) / 6 - 1, 1]
        at_row, at_column = (y + 1) / 2 * SHAPE[0], (x + 1) / 2 * SHAPE[1]
        distance = max(abs(at_row - roi.row), abs(at_column - roi.column))
        if abs(distance - roi.side / 2) > 1e-3:
            assert bool(found[row, column]) == (distance < roi.side / 2)


@given(roi=regions(SHAPE))
def test_the_server_is_asked_about_the_part_that_is_in_the_slice(roi: Roi) -> None:
    region = roi.region(SHAPE)
    Canvas.of(region, *SHAPE, 64)  # or it would refuse it
    assert region.quarter_turns == roi.quarter_turns
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]] + 0.5
    beside = np.maximum(abs(rows - roi.row), abs(columns - roi.column)) - roi.side / 2
    shown = np.zeros(SHAPE, bool)
    shown[region.top :, region.left :][: region.height, : region.width] = True
    assert shown[beside < 0].all()
    assert not shown[beside > 1].any()
    whole = Region(top=0, left=0, height=SHAPE[0], width=SHAPE[1], quarter_turns=1)
    assert Roi(-50.0, 20.0, 30.0, 1).region(SHAPE) == whole, "where nothing of it is there"


def test_intensities_are_those_of_the_region() -> None:
    """Bright fat beside the structures does not make them dark; in training as in prediction."""
    image = np.random.default_rng(0).integers(20, 80, (200, 240)).astype(np.int16)
    image[:, 160:] = 2000
    roi = Roi(90.0, 70.0, 60.0)
    low, high = frame.window(image, roi)
    assert (low, high) == frame.window(image[60:120, 40:100])
    assert high < 80 < frame.window(image)[1]
    for size in (16, 32):  # reduced and not
        item = Slice("a/0", image, None, "a")
        seen = batches.canonical(item, size, roi)
        unit = frame.unit(image, size, None, roi)
        expected = frame.resample(unit, frame.theta(image.shape, roi), size, mode="bilinear")
        assert torch.allclose(seen, expected, atol=5e-4)
        assert float(seen.mean()) == pytest.approx(0.5, abs=0.1)
        assert float(batches.canonical(item, size, None).mean()) < 0.4


def _slice(series: str, number: int, labels: UInt8Array | None) -> Slice:
    return Slice(f"{series}/{number}", np.zeros(SHAPE, np.uint8), labels, series)


def test_the_region_of_labels_is_around_all_slices_and_frames_of_a_series() -> None:
    def labels(*pixels: tuple[int, int]) -> UInt8Array:
        out = np.zeros(SHAPE, np.uint8)
        for value, pixel in enumerate(pixels, start=1):
            out[pixel] = value
        return out

    items = [
        *(_slice("a", 0, labels((10, 20))), _slice("b", 0, labels((3, 3)))),
        *(_slice("a", 1, labels((14, 22), (12, 30))), _slice("empty", 0, labels())),
        _slice("unlabelled", 0, None),
    ]
    found = find.of_labels(items)
    assert found == {
        "a": Roi(12.5, 25.5, find.MARGIN * 11),
        "b": Roi(3.5, 3.5, find.MARGIN * 1),
    }


def test_vessas_window_becomes_a_square_with_the_same_middle() -> None:
    found = find.window(Region(top=10, left=20, height=30, width=16, quarter_turns=3))
    assert found == Roi(25.0, 28.0, 30.0, 3)


def test_a_region_grows_around_its_middle() -> None:
    assert Roi(4.0, 5.0, 10.0, 2).scaled(1.2) == Roi(4.0, 5.0, 12.0, 2)


@given(st.dictionaries(st.text(max_size=5), regions((90, 70)), max_size=4))
def test_regions_come_back_from_json(found: dict[str, Roi]) -> None:
    assert find.from_rows(json.loads(json.dumps(find.as_rows(found)))) == found


class _Bright(Locator):
    """Sees bright pixels as inside, and no turn."""

    def forward(self, image_B1HW: Tensor) -> tuple[Tensor, Tensor]:
        return 30 * (image_B1HW - 0.5), torch.zeros(len(image_B1HW), 4)


@pytest.mark.parametrize("times", [1, 3, 6])
def test_a_region_is_in_pixels_of_the_slice_at_any_resolution(times: int) -> None:
    """A large slice is reduced before the locator sees it."""
    image = np.zeros((80 * times, 60 * times), np.float32)
    image[20 * times : 44 * times, 30 * times : 50 * times] = 1
    items = [Slice(f"a/{i}", image, None, "a") for i in range(3)]
    assert (items[0].unit(SIZE).shape[1:] == image.shape) == (times == 1)
    advanced: list[int] = []
    found = find.by_locator(_Bright(), items, lambda: advanced.append(1))["a"]
    assert len(advanced) == 1
    expected = (32 * times, 40 * times, (24 * 20) ** 0.5 * times)
    assert (found.row, found.column, found.side) == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize("turns", [0, 1])
def test_slices_of_two_resolutions_show_the_same_region(turns: int) -> None:
    fine = np.random.default_rng(0).random((400, 320)).astype(np.float32)
    coarse = fine.reshape(100, 4, 80, 4).mean(axis=(1, 3))
    fine = coarse.repeat(4, axis=0).repeat(4, axis=1)
    one, other = (
        batches.canonical(
            Slice("", image, None, ""), 16, Roi(50.0 * scale, 40.0 * scale, 32.0 * scale, turns)
        )
        for image, scale in ((coarse, 1), (fine, 4))
    )
    assert float((one - other).abs().max()) < 0.02


@given(roi=regions(SHAPE))
def test_prompts_are_nothing_outside_of_the_region(roi: Roi) -> None:
    """A canvas of which class 1 has 0.6 and class 2 has 0.2 everywhere."""
    maps = torch.tensor([0.2, 0.6, 0.2])[:, None, None].expand(3, 32, 32)
    found = pipeline.mask(maps, SHAPE, roi)
    assert found.shape == (2, *SHAPE)
    assert found.dtype == np.uint8
    for at in np.ndindex(SHAPE):
        distance = max(abs(at[0] + 0.5 - roi.row), abs(at[1] + 0.5 - roi.column))
        if abs(distance - roi.side / 2) > 1e-3:
            inside = distance < roi.side / 2
            assert found[:, *at].tolist() == ([153, 51] if inside else [0, 0])


def test_a_prompt_is_the_canvas_turned_back() -> None:
    roi, maps = Roi(20, 30, 16, 3), torch.zeros(2, 16, 16)
    maps[1, :8, :4] = 1
    expected = np.zeros(SHAPE, np.uint8)
    expected[12:28, 22:38] = np.rot90(255 * maps[1].numpy(), -3)
    assert np.array_equal(pipeline.mask(maps, SHAPE, roi)[0], expected)


class _Fixed(Locator):
    """Always the same region."""

    def __init__(self, roi: Roi) -> None:
        super().__init__()
        self.roi = roi

    def locate(self, slices: Sequence[Tensor], shape: tuple[int, ...]) -> Roi:
        return self.roi


class _UpperHalf(nn.Module):
    """Takes the upper half of a view for a structure."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, image_B1HW: Tensor) -> Tensor:
        height = torch.linspace(-8, 8, image_B1HW.shape[2])[:, None].expand(image_B1HW.shape)
        return torch.cat([height, -height], dim=1) * self.scale


@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
@pytest.mark.parametrize("angles", [(0.0,), (0.0, 8.0, -8.0)])
def test_what_is_found_in_a_region_lies_where_the_volume_shows_it(
    tmp_path: Path, quarter_turns: int, angles: tuple[float, ...]
) -> None:
    file = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((60, 44, 3), np.float32), AFFINE), file)
    image = files.read(file)
    shape, roi = image.slice(0).shape, Roi(24.0, 20.0, 24.0, quarter_turns)
    locator = _Fixed(roi).eval()
    labels = Predictor(_UpperHalf(), 32, angles, locator=locator)(image)
    upright = np.zeros((24, 24), np.uint8)
    upright[:12] = 1
    expected = np.zeros(shape, np.uint8)
    expected[12:36, 8:32] = np.rot90(upright, -quarter_turns)
    for found in labels:
        assert (found != expected).mean() < (0.06 if len(angles) > 1 else 1e-6)
        assert not found[expected == 0][:12].any()


def _volume(seed: int, turns: int) -> tuple[list[Slice], Roi]:
    """Two slices with a square that is brighter in its upper half, turned; and where it is.

    Counter-clockwise by ``turns`` it lies upright.
    """
    rng = np.random.default_rng(seed)
    top, left = rng.integers(4, 28, 2)
    slices = []
    for number in range(2):
        image = 0.3 + 0.1 * rng.standard_normal((48, 48))
        image[top : top + 16, left : left + 16] += 0.3
        image[top : top + 6, left : left + 16] += 0.5
        turned = np.ascontiguousarray(np.rot90(image, -turns)).astype(np.float32)
        slices.append(Slice(f"{seed}/{number}", turned, None, str(seed)))
    shown = np.zeros((48, 48), bool)
    shown[top : top + 16, left : left + 16] = True
    return slices, Roi.around(np.rot90(shown, -turns), 1.0, turns)


def _overlap(one: Roi, other: Roi) -> float:
    """Intersection over union of two squares."""
    sides = [
        min(a + one.side / 2, b + other.side / 2) - max(a - one.side / 2, b - other.side / 2)
        for a, b in ((one.row, other.row), (one.column, other.column))
    ]
    shared = max(0.0, sides[0]) * max(0.0, sides[1])
    return shared / (one.side**2 + other.side**2 - shared)


def test_a_locator_is_right_where_those_who_taught_it_were_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "STEPS", 60)
    volumes = [_volume(seed, seed % 4) for seed in range(20)]
    slices = [item for own, _ in volumes for item in own]
    truth = {own[0].series: roi for own, roi in volumes}
    # Some lie elsewhere, and are turned otherwise.
    wrong = {
        series: Roi((roi.row + 24) % 48, (roi.column + 20) % 48, 12, (roi.quarter_turns + 1) % 4)
        for series, roi in list(truth.items())[::4]
    }
    unseen = [_volume(seed, seed % 4) for seed in range(100, 108)]
    locator = training.train(slices, truth | wrong, 0, CPU)
    found = find.by_locator(locator, slices + [item for own, _ in unseen for item in own])
    truth |= {own[0].series: roi for own, roi in unseen}
    overlaps = {series: _overlap(found[series], roi) for series, roi in truth.items()}
    turns = [found[series].quarter_turns == roi.quarter_turns for series, roi in truth.items()]
    assert min(overlaps.values()) > 0.5, overlaps
    assert all(turns)


def test_a_locator_is_that_of_its_seed_and_of_the_series_with_a_region(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "STEPS", 2)
    (first, roi), (second, _) = _volume(0, 0), _volume(1, 1)
    advanced: list[int] = []

    def weights(items: list[Slice], seed: int) -> dict[str, Tensor]:
        torch.rand(3)  # whatever was drawn before
        locator = training.train(items, {"0": roi}, seed, CPU, lambda: advanced.append(1))
        return locator.state_dict()

    one, same, other = weights(first, 0), weights([*first, *second], 0), weights(first, 1)
    assert len(advanced) == 6
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_a_locator_is_trained_where_the_run_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without values refuses whatever lies on the CPU."""
    monkeypatch.setattr(training, "STEPS", 2)
    item, roi = single_slices(1)[0], Roi(30, 26, 20, 0)
    locator = training.train([item], {item.series: roi}, 0, torch.device("meta"))
    assert {parameter.device.type for parameter in locator.parameters()} == {"meta"}


def test_damaged_files_of_a_run_are_named(tmp_path: Path) -> None:
    for content in (
        "{",
        '{"vessa": {}}',
        '{"used": {"a": [1, 2]}}',
        '{"used": {"a": [1, 2, "x", 0]}}',
        '{"used": {"a": [1, NaN, 3, 0]}}',
        '{"used": {"a": [1, 2, 0, 0]}}',
        '{"used": []}',
        '{"used": null}',
    ):
        (tmp_path / run.REGIONS_FILE).write_text(content)
        with pytest.raises(ValueError, match=rf"{run.REGIONS_FILE}: damaged .* remove it"):
            run.load_regions(tmp_path)
    with pytest.raises(WeightsError, match=run.LOCATOR_FILE):
        run.load_locator(tmp_path, torch.device("cpu"))
    (tmp_path / run.LOCATOR_FILE).write_bytes(b"x")
    with pytest.raises(WeightsError, match=rf"{run.LOCATOR_FILE}: cannot be read"):
        run.load_locator(tmp_path, torch.device("cpu"))


@pytest.mark.parametrize("shape", [(1000, 100), (100, 1000), (200, 200)])
@pytest.mark.parametrize("off", [0, 40])
def test_a_square_that_goes_on_beyond_a_slice_is_whole(shape: tuple[int, int], off: int) -> None:
    """Structures of a long slice are in the region, which may be wider than the slice is."""
    height, width = shape
    side = min(180, max(shape) // 2)
    row, column = (height / 2 + off, width / 2) if height > width else (height / 2, width / 2 + off)
    heat = torch.zeros(shape)
    top, left = int(row - side / 2), int(column - side / 2)
    heat[max(0, top) : top + side, max(0, left) : left + side] = 1
    found = square(heat, 0)
    assert found.side == pytest.approx(side, abs=2)
    assert (found.row, found.column) == pytest.approx((row, column), abs=1)


def test_annotated_volumes_without_a_structure_have_a_region_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "STEPS", 2)
    config = small_config(write_dataset(tmp_path / "data"), regions=True)
    split = cases.find(config.data)
    unlabelled = read_slices(split.unlabelled, 2, labelled=False)
    shown = np.zeros(SHAPE, np.uint8)
    shown[10:20, 10:20] = 1
    labelled = [_slice("a", 0, shown), _slice("b", 0, np.zeros(SHAPE, np.uint8))]
    run.find_all(config, labelled, unlabelled, None, tmp_path, run.no_stage, CPU)
    assert {"a", "b"} <= run.load_regions(tmp_path).keys()


def test_labels_without_a_structure_are_refused_in_words(tmp_path: Path) -> None:
    config = small_config(write_dataset(tmp_path / "data"), regions=True)
    split = cases.find(config.data)
    unlabelled = read_slices(split.unlabelled, 2, labelled=False)
    empty = [_slice("a", 0, np.zeros(SHAPE, np.uint8))]
    with pytest.raises(ValueError, match=r"data\.labelled: no annotated slice shows a structure"):
        run.find_all(config, empty, unlabelled, None, tmp_path, run.no_stage, CPU)


def test_what_is_beside_a_region_does_not_make_it_dark() -> None:
    image = np.full((60, 80), 1000.0, np.float32)
    image[20:40, 30:50] = np.linspace(100, 200, 400).reshape(20, 20)
    roi = Roi(row=30, column=40, side=20)
    seen = frame.unit(image, 32, None, roi)[0, 20:40, 30:50]
    assert float(seen.min()) < 0.01
    assert float(seen.max()) > 0.99
    item = Slice("a/0", image, None, "a")
    assert torch.equal(item.unit(32, roi), frame.unit(image, 32, None, roi))
    assert torch.equal(item.unit(32), frame.unit(image, 32, None))


@given(side=st.floats(1, 200), shape=SHAPES, turns=st.integers(0, 3))
def test_a_region_that_is_most_of_a_slice_is_all_of_it(
    side: float, shape: tuple[int, int], turns: int
) -> None:
    roi = Roi(3.0, 4.0, side, turns)
    large = side**2 >= 0.7 * shape[0] * shape[1]
    assert roi.or_whole(shape) == (Roi.whole(shape, turns) if large else roi)


def test_structures_all_over_a_picture_need_no_region() -> None:
    labels = np.zeros((40, 52), np.uint8)
    labels[2:38, 3:50] = 1
    item = Slice("a/0", labels, labels, "a")
    assert find.of_labels([item]) == {"a": Roi.whole(labels.shape)}
    window = find.window(Region(top=0, left=0, height=40, width=52))
    assert window.scaled(1.2).or_whole(labels.shape) == Roi.whole(labels.shape)


def test_of_very_many_pictures_vessa_is_asked_about_some(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Slice] = []

    class Asked:
        def regions(self, slices: list[Slice], advance: object) -> dict[str, Region]:
            asked.extend(slices)
            return {i.series: Region(top=0, left=0, height=9, width=9) for i in slices}

    monkeypatch.setattr(run, "MOST_ASKED", 7)
    found = run._asked(Asked(), single_slices(32), run.no_stage)  # type: ignore[arg-type]
    assert found.keys() == {item.series for item in asked}
    assert len(found) == 7
