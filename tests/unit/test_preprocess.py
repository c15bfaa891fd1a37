from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vessa_server.model import preprocess
from vessa_server.model.preprocess import Canvas

sides = st.integers(8, 300)


@settings(max_examples=50, deadline=None)
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


def test_the_overlay_tints_only_the_masks() -> None:
    image = torch.full((1, 3, 4, 4), 0.5)
    asked, other = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    asked[..., 0, 0], other[..., 3, 3] = 1, 1
    tinted = preprocess.overlay(image, asked, other)
    changed = (tinted != image).any(dim=1)[0]
    assert changed.sum() == 2
    assert tinted[0, 0, 0, 0] > tinted[0, 2, 0, 0]
    assert tinted[0, 2, 3, 3] > tinted[0, 0, 3, 3]
