"""Maps of large images on fewer pixels, and back. Axes: C classes, H W space."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vessa_server.cases.frame import Frame
from vessa_server.model.preprocess import Canvas, Crop
from vessa_server.policy.answers import Floats

Draw = Callable[[st.SearchStrategy[int]], int]
SIDES = st.integers(8, 3000)
# A frame has no more pixels a side than its canvas: the others' are not tested with large maps.
CANVAS = 64


@st.composite
def frames(draw: Draw, largest: int = 3000) -> Frame:
    """Of images of any size."""
    height, width = draw(st.integers(8, largest)), draw(st.integers(8, largest))
    return Frame.of(height, width, draw(st.integers(CANVAS, 512)))


@st.composite
def windows(draw: Draw, height: int, width: int) -> Crop:
    """Inside of an image."""
    tall, wide = draw(st.integers(1, height)), draw(st.integers(1, width))
    top, left = draw(st.integers(0, height - tall)), draw(st.integers(0, width - wide))
    return Crop(top, left, tall, wide)


@given(height=SIDES, width=SIDES, side=st.integers(8, 4096))
def test_a_frame_has_at_most_so_many_pixels_a_side_and_covers_the_image(
    height: int, width: int, side: int
) -> None:
    frame = Frame.of(height, width, side)
    assert max(frame.shape) <= side
    for pixels, whole in zip(frame.shape, (height, width), strict=True):
        assert (pixels - 1) * frame.step < whole <= pixels * frame.step
    assert (frame.step == 1) == (max(height, width) <= side)


@given(height=st.integers(8, 90), width=st.integers(8, 90), data=st.data())
def test_an_image_that_is_no_larger_than_its_frame_stays_as_it_is(
    height: int, width: int, data: st.DataObject
) -> None:
    frame = Frame.of(height, width, 90)
    assert (frame.step, frame.shape) == (1, (height, width))
    maps = np.random.default_rng(0).normal(size=(2, height, width)).astype(np.float32)
    assert frame.reduce(maps) is maps
    assert frame.enlarge(maps) is maps
    crop = data.draw(st.none() | windows(height, width))
    assert frame.in_image(crop) == crop
    canvas = Canvas(height, width, CANVAS, crop, data.draw(st.integers(0, 3)))
    assert frame.canvas(canvas) == canvas


@given(frame=frames(largest=1500), constant=st.floats(-9, 9, width=16))
def test_maps_keep_their_shapes_and_constants_there_and_back(frame: Frame, constant: float) -> None:
    image = np.full((2, frame.height, frame.width), constant, np.float32)
    reduced = frame.reduce(image)
    assert reduced.shape == (2, *frame.shape)
    enlarged = frame.enlarge(reduced)
    assert enlarged.shape == image.shape
    assert np.allclose(enlarged, constant, atol=1e-4)


@given(frame=frames(largest=1000), axis=st.integers(0, 1))
def test_pixels_stay_where_they_were_to_within_one_step(frame: Frame, axis: int) -> None:
    """Maps that say where each pixel is."""
    size = (frame.height, frame.width)
    ramp = np.broadcast_to(np.ogrid[: size[0], : size[1]][axis] + 0.5, (1, *size))
    ours = np.ogrid[: frame.shape[0], : frame.shape[1]][axis] * frame.step + 0.5 * frame.step
    reduced = frame.reduce(ramp.astype(np.float32))
    assert np.abs(reduced[0] - ours).max() <= frame.step
    assert np.abs(frame.enlarge(reduced) - ramp).max() <= frame.step


@given(data=st.data(), frame=frames())
def test_a_window_of_the_frame_is_one_inside_of_the_image(
    data: st.DataObject, frame: Frame
) -> None:
    crop = data.draw(windows(*frame.shape))
    window = frame.in_image(crop)
    assert window is not None
    assert 0 <= window.top < window.top + window.height <= frame.height
    assert 0 <= window.left < window.left + window.width <= frame.width
    canvas = Canvas(frame.height, frame.width, CANVAS, window)
    assert frame.canvas(canvas).window == crop, "and the same one on the frame again"
    assert frame.in_image(None) is None


@given(data=st.data(), frame=frames(), turns=st.integers(0, 3))
def test_a_canvas_of_the_frame_shows_the_same_part_to_within_one_step(
    data: st.DataObject, frame: Frame, turns: int
) -> None:
    crop = data.draw(st.none() | windows(frame.height, frame.width))
    canvas = Canvas(frame.height, frame.width, CANVAS, crop, turns)
    ours = frame.canvas(canvas)
    assert (ours.height, ours.width) == frame.shape
    assert (ours.size, ours.turns) == (CANVAS, turns)
    assert (ours.crop is None) == (crop is None)
    mine, theirs = ours.window, canvas.window
    assert 0 <= mine.top < mine.top + mine.height <= frame.shape[0]
    assert 0 <= mine.left < mine.left + mine.width <= frame.shape[1]
    edges = zip(_edges(mine), _edges(theirs), strict=True)
    assert max(abs(one * frame.step - other) for one, other in edges) < max(frame.step, 1)


def _edges(window: Crop) -> tuple[int, int, int, int]:
    bottom, right = window.top + window.height, window.left + window.width
    return window.top, window.left, bottom, right


def _smooth(frame: Frame, window: Crop) -> Floats:
    """A long spot above and left of the window's middle, so that a wrong turn shows."""
    rows = (np.arange(frame.shape[0]) + 0.5 - window.top) / window.height
    columns = (np.arange(frame.shape[1]) + 0.5 - window.left) / window.width
    tall, wide = ((rows - 0.42) / 0.12) ** 2, ((columns - 0.36) / 0.16) ** 2
    spot: Floats = np.exp(-(tall[:, None] + wide) / 2)[None].astype(np.float32)
    return spot


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@given(data=st.data(), frame=frames(largest=900))
def test_what_is_placed_on_a_canvas_is_restored(
    turns: int, data: st.DataObject, frame: Frame
) -> None:
    window = data.draw(st.none() | windows(*frame.shape))
    canvas = Canvas(frame.height, frame.width, CANVAS, frame.in_image(window), turns)
    shown = window or Crop(0, 0, *frame.shape)
    assume(min(*canvas.inner, shown.height, shown.width) >= 16)
    spot = _smooth(frame, shown)
    placed = frame.place(spot, canvas, CANVAS // 2)
    assert placed.shape == (1, CANVAS // 2, CANVAS // 2)
    restored = frame.restore(placed, canvas, outside=-7.0)
    assert restored.shape == spot.shape
    inside = np.zeros(frame.shape, np.bool_)
    inside[shown.top : shown.top + shown.height, shown.left : shown.left + shown.width] = True
    assert (restored[0][~inside] == -7).all()
    assert np.abs(restored - spot)[0][inside].max() < 0.2


def test_a_frame_of_a_large_image_has_the_side_that_is_asked() -> None:
    frame = Frame.of(4096, 1000, 512)
    assert (frame.step, frame.shape) == (8, (512, 125))
    assert math.prod(frame.shape) < 512 * 512
