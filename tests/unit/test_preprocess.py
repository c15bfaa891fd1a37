from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vessa_client import AnyArray
from vessa_server.model import intensity, preprocess
from vessa_server.model.preprocess import Canvas, Crop

sides = st.integers(8, 300)


@settings(max_examples=50)
@given(sides, sides)
def test_a_mask_comes_back_where_it_was(height: int, width: int) -> None:
    canvas = Canvas(height, width, 256)
    mask = torch.zeros(1, height, width)
    top, left = height // 4, width // 4
    mask[:, top : top + height // 2, left : left + width // 2] = 1
    back = canvas.restore(canvas.place(mask))
    assert back.shape == mask.shape
    found = back > 0.5
    overlap = float((found & (mask > 0)).sum()) / float((found | (mask > 0)).sum())
    assert overlap > 0.8 or max(height, width) > 8 * min(height, width)


@given(sides, sides)
def test_the_longer_side_fills_the_canvas(height: int, width: int) -> None:
    inner = Canvas(height, width, 64).inner
    assert max(inner) == 64
    assert min(inner) >= 1


def _former(image: AnyArray) -> torch.Tensor:
    """The plain formula in fp32, which is right for images of an ordinary range."""
    array = image.astype(np.float32)
    low, high = np.percentile(array, [0.5, 99.5])
    if high <= low:
        low, high = float(array.min()), float(array.max())
    scale = np.float32(max(float(high - low), 1e-6))
    scaled = np.clip((array - np.float32(low)) / scale, 0.0, 1.0)
    if scaled.ndim == 2:
        scaled = np.repeat(scaled[..., None], 3, axis=2)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))


shapes = st.one_of(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3)),
)
counted = st.sampled_from([np.uint8, np.int8, np.uint16, np.int16]).flatmap(
    lambda dtype: arrays(dtype, shapes)
)


@given(counted)
def test_counted_percentiles_are_numpys(image: AnyArray) -> None:
    expected = np.percentile(image.astype(np.float32), [0.5, 99.5])
    assert intensity.percentiles(image) == tuple(expected)


def test_counted_percentiles_of_many_pixels_are_numpys() -> None:
    image = np.random.default_rng(0).gamma(2.0, 900.0, (700, 900)).astype(np.int16)
    assert image.size > 4 * intensity.COUNTED_AT_ONCE
    expected = np.percentile(image.astype(np.float32), [0.5, 99.5])
    assert intensity.percentiles(image) == tuple(expected)


@given(counted)
def test_integers_are_scaled_as_by_the_plain_formula(image: AnyArray) -> None:
    assert torch.equal(preprocess.to_unit_range(image), _former(image))


@given(arrays(np.float32, shapes, elements=st.integers(-5000, 5000).map(lambda v: v / 8)))
def test_ordinary_fp32_is_scaled_as_by_the_plain_formula(image: AnyArray) -> None:
    assert torch.equal(preprocess.to_unit_range(image), _former(image))


@pytest.mark.parametrize("colours", [False, True])
@pytest.mark.parametrize(
    ("factor", "shift", "dtype"),
    [
        (7, -1000, np.int16),
        (1000, 10**6, np.int32),
        (10**12, 0, np.int64),
        (1e-9, 0, np.float32),
        (1e9, 0, np.float32),
        (1e-38, 0, np.float32),
        (1e35, 0, np.float32),
        (1e-300, 0, np.float64),
        (1e300, -1e302, np.float64),
        (8e305, -8e307, np.float64),
        (1e-9, 1, np.float64),
    ],
)
def test_the_unit_does_not_matter(
    factor: float, shift: float, dtype: type[np.generic], colours: bool
) -> None:
    shape = (30, 40, 3) if colours else (30, 40)
    image = np.random.default_rng(0).integers(0, 200, shape)
    base = intensity.unit_range(image.astype(np.uint8))
    assert base.shape == (3 if colours else 1, 30, 40)
    assert float(base.min()) == 0.0
    assert float(base.max()) == 1.0
    found = intensity.unit_range((image * factor + shift).astype(dtype))
    assert found.dtype == torch.float32
    assert torch.allclose(found, base, rtol=0, atol=1e-5)


@given(
    st.sampled_from([np.float32, np.float64]).flatmap(
        lambda dtype: arrays(
            dtype,
            shapes,
            elements=st.floats(
                width=32 if dtype is np.float32 else 64, allow_nan=False, allow_infinity=False
            ),
        )
    )
)
def test_any_finite_image_is_in_the_unit_range(image: AnyArray) -> None:
    unit = intensity.unit_range(image)
    assert bool(((unit >= 0) & (unit <= 1)).all())
    if image.min() < image.max():
        assert float(unit.max()) > 0


@pytest.mark.parametrize(
    "value",
    [
        np.uint8(0),
        np.uint8(255),
        np.int16(-32768),
        np.int64(2**62),
        np.float32(3e38),
        np.float32(1e-45),
        np.float64(-1.7e308),
        np.float64(0.1),
    ],
)
def test_constant_images_are_black(value: np.generic) -> None:
    unit = preprocess.to_unit_range(np.full((9, 9), value))
    assert unit.shape == (3, 9, 9)
    assert not unit.any()


def test_differences_that_vanish_in_fp32_are_defined() -> None:
    image = np.zeros((20, 20), np.float32)
    image[0, :3] = (1e-45, 1e-45, 1.0)
    unit = intensity.unit_range(image)
    assert bool(((unit >= 0) & (unit <= 1)).all())


def test_the_channels_of_grey_images_share_their_memory() -> None:
    image = np.random.default_rng(0).integers(0, 200, (30, 40)).astype(np.uint8)
    unit = preprocess.to_unit_range(image)
    assert unit.untyped_storage().nbytes() == 30 * 40 * 4
    canvas = Canvas(30, 40, 64)
    placed = canvas.place(intensity.unit_range(image)).expand(3, -1, -1)
    assert torch.equal(canvas.place(unit), placed)
    assert torch.equal(canvas.place(unit.contiguous()), placed)


def test_the_overlay_tints_every_structure_in_its_own_colour() -> None:
    image = torch.full((1, 3, 4, 4), 0.5)
    labels = torch.zeros(1, 4, 4, dtype=torch.uint8)
    labels[0, 0, 0], labels[0, 3, 3], labels[0, 1, 1] = 1, 3, 9
    tinted = preprocess.overlay(image, labels)
    assert (tinted != image).any(dim=1)[0].sum() == 3
    names = [preprocess.tint_of(value).name for value in (1, 3, 9)]
    assert names == ["red", "blue", "red"]
    assert tinted[0, :, 0, 0].argmax() == 0
    assert tinted[0, :, 3, 3].argmax() == 2
    assert torch.equal(tinted[0, :, 1, 1], tinted[0, :, 0, 0])


def test_a_window_comes_back_where_it_was() -> None:
    mask = torch.zeros(1, 60, 80)
    mask[0, 20:32, 50:66] = 1
    crop = Crop(14, 44, 24, 30)
    canvas = Canvas(60, 80, 64, crop)
    placed = canvas.place(mask, mode="area")
    assert float(placed.mean()) > 4 * float(mask.mean())
    restored = canvas.restore(placed, outside=-1.0)[0]
    assert torch.equal(restored[14:38, 44:74] > 0.5, mask[0, 14:38, 44:74] > 0.5)
    outside = torch.ones(60, 80, dtype=torch.bool)
    outside[14:38, 44:74] = False
    assert bool((restored[outside] == -1).all())


@given(
    st.integers(30, 300), st.integers(30, 300), st.floats(0, 1), st.floats(0, 1), st.integers(1, 60)
)
def test_the_window_holds_the_structure_and_lies_in_the_image(
    height: int, width: int, row: float, column: float, extent: int
) -> None:
    mask = np.zeros((height, width), dtype=bool)
    top, left = round(row * (height - 1)), round(column * (width - 1))
    mask[top : top + extent, left : left + extent] = True
    crop = preprocess.focus(mask)
    rows, columns = (np.flatnonzero(mask.any(axis=a)) for a in (1, 0))
    wanted = preprocess.FOCUS_MARGIN * max(len(rows), len(columns))
    if crop is None:
        assert wanted + 1 > preprocess.FOCUS_BELOW * max(height, width) or extent < 24
        return
    assert 0 <= crop.top <= crop.top + crop.height <= height
    assert 0 <= crop.left <= crop.left + crop.width <= width
    assert crop.top <= rows[0]
    assert rows[-1] < crop.top + crop.height
    assert crop.left <= columns[0]
    assert columns[-1] < crop.left + crop.width
    assert max(crop.height, crop.width) <= max(wanted + 1, preprocess.MIN_FOCUS)


def test_specks_do_not_widen_the_window_and_nothing_has_none() -> None:
    mask = np.zeros((100, 100), dtype=bool)
    assert preprocess.focus(mask) is None
    mask[40:60, 40:60] = True
    alone = preprocess.focus(mask)
    mask[2, 2] = True
    assert preprocess.focus(mask) == alone
    mask[80:92, 80:92] = True  # a second structure, not a speck
    both = preprocess.focus(mask)
    assert both is not None
    assert alone is not None
    assert both.height > alone.height
    mask[:] = True
    assert preprocess.focus(mask) is None


windows = st.builds(
    Crop, st.integers(0, 20), st.integers(0, 20), st.integers(1, 20), st.integers(1, 20)
)


@given(windows, windows)
def test_the_overlap_of_windows_is_that_of_their_pixels(one: Crop, other: Crop) -> None:
    painted = np.zeros((2, 40, 40), dtype=bool)
    for canvas, crop in zip(painted, (one, other), strict=True):
        canvas[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width] = True
    expected = (painted[0] & painted[1]).sum() / (painted[0] | painted[1]).sum()
    assert one.overlap(other) == pytest.approx(expected)


@given(sides, sides, st.integers(0, 3))
def test_a_turned_canvas_is_the_canvas_of_the_turned_image(
    height: int, width: int, turns: int
) -> None:
    image = torch.rand(2, height, width, generator=torch.Generator().manual_seed(0))
    turned = torch.rot90(image, turns, (1, 2))
    straight = Canvas(turned.shape[1], turned.shape[2], 64)
    canvas = Canvas(height, width, 64, turns=turns)
    placed = canvas.place(image)
    assert torch.equal(placed, straight.place(turned))
    back = torch.rot90(straight.restore(placed), -turns, (1, 2))
    assert torch.equal(canvas.restore(placed), back)
