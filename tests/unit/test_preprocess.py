from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vessa_server.model import preprocess
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


def test_range_does_not_depend_on_offset_and_scale() -> None:
    image = np.random.default_rng(0).integers(0, 200, (30, 40)).astype(np.int16)
    base = preprocess.to_unit_range(image)
    assert base.shape == (3, 30, 40)
    assert torch.allclose(base, preprocess.to_unit_range(image * 7 - 1000), atol=1e-5)
    assert float(base.min()) == 0.0
    assert float(base.max()) == 1.0


def test_constant_images_are_defined() -> None:
    for value in (0, 255):
        unit = preprocess.to_unit_range(np.full((9, 9), value, np.uint8))
        assert bool(torch.isfinite(unit).all())


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
