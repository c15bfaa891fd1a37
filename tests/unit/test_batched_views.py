"""Views of a batch, made at once, against each made alone; on the CPU and, if there is, a GPU."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssl_trainer.config import RichAugmentationConfig, TrainConfig
from ssl_trainer.data import batches, frame, noise, rich
from ssl_trainer.data.frame import Roi, WeakTransform
from ssl_trainer.data.planes import Planes
from ssl_trainer.data.slices import Slice
from ssl_trainer.data.store import SliceStore
from support_devices import DEVICES, skip_without
from trainer_support import regions, small_config, stored, transforms
from vessa_client import UInt8Array
from vessa_common.transfer import to_device

SIZE = 32
CPU = torch.device("cpu")
Shape = tuple[int, int]
shapes = st.tuples(st.integers(20, 150), st.integers(20, 150))


@st.composite
def _cases(draw: Callable[[st.SearchStrategy[Any]], Any]) -> list[tuple[Shape, Roi | None, Any]]:
    """Shapes, regions and transforms of a batch."""
    found = []
    for shape in draw(st.lists(shapes, min_size=1, max_size=4)):
        roi = draw(st.none() | regions(shape=shape))
        found.append((shape, roi, draw(transforms())))
    return found


def _smooth(shape: Shape, number: int) -> UInt8Array:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    wave = np.sin(rows / (6 + number)) + np.cos(columns / (5 + number))
    values: UInt8Array = np.rint(127 + 60 * wave).astype(np.uint8)
    return values


def _slices(found: list[tuple[Shape, Roi | None, WeakTransform]]) -> list[Slice]:
    slices = []
    for number, (shape, _, _) in enumerate(found):
        image = _smooth(shape, number)
        labels = (image // 90).astype(np.uint8)
        slices.append(Slice(f"{number}/0", image, labels, str(number), windowed=True))
    return slices


def _near_border(view_HW: Tensor) -> Tensor:
    """Pixels beside one of another value: there a label may fall to either side."""
    padded = F.pad(view_HW[None, None], (1, 1, 1, 1), mode="replicate")
    return (F.max_pool2d(padded, 3, 1) != -F.max_pool2d(-padded, 3, 1))[0, 0]


def _between_pixels(grid_HW2: Tensor, shape: Shape) -> Tensor:
    """What lies half-way between two pixels of a slice: the nearest one is either."""
    sides = torch.tensor(shape[::-1])
    pixel_HW2 = ((grid_HW2.double() + 1) * sides - 1) / 2
    return ((pixel_HW2 % 1 - 0.5).abs() < 1e-4).any(dim=-1)


@settings(max_examples=40)
@given(_cases())
def test_slices_of_all_sizes_are_sampled_at_once_as_each_alone(
    found: list[tuple[Shape, Roi | None, WeakTransform]],
) -> None:
    slices = _slices(found)
    rois = {str(number): roi for number, (_, roi, _) in enumerate(found) if roi is not None}
    store = stored(slices, SIZE, rois, labelled=True)
    rows = list(range(len(slices)))[::-1]
    grid = store.grids(rows, [found[row][2] for row in rows])
    images = store.images(rows).sample(grid, mode="bilinear")
    labels = store.labels(rows).sample(grid, mode="nearest")
    canvases = store.canvases(rows)
    for place, row in enumerate(rows):
        shape, roi, transform = found[row]
        alone = frame.grid(frame.theta(shape, roi, transform), SIZE)
        assert torch.equal(grid[place], alone)
        unit = slices[row].unit(SIZE, roi).half().float()
        expected = frame.sample(unit, alone, mode="bilinear")
        # Half of a millionth of a side, of up to 450 pixels, in which intensities change by 1/10.
        assert torch.allclose(images[place], expected, atol=5e-5)
        truth = torch.tensor(slices[row].labels)[None].float()
        alone_labels = frame.sample(truth, alone, mode="nearest")
        differ = labels[place, 0] != alone_labels[0]
        assert not bool((differ & ~_near_border(alone_labels[0])).any())
        assert int((differ & ~_between_pixels(alone, shape)).sum()) <= 2
        canvas = batches.canonical(slices[row], SIZE, roi)
        assert torch.allclose(canvases[place], canvas, atol=5e-4)


def test_a_store_is_the_same_where_there_is_no_room_for_all() -> None:
    found: list[tuple[Shape, Roi | None, WeakTransform]] = [
        ((30, 44), None, WeakTransform(angle=0.3)),
        ((200, 130), None, WeakTransform(zoom=1.2)),
        ((51, 20), Roi(20.0, 10.0, 15.0, 1), WeakTransform(mirror_x=True)),
    ]
    slices = _slices(found)
    rois = {"2": found[2][1]} if found[2][1] else {}
    rows = [2, 0, 1, 2]
    stores = [
        SliceStore(slices, SIZE, rois, CPU, labelled=True, most_bytes=most) for most in (10**6, 0)
    ]
    assert stores[0]._images is not None
    assert stores[1]._images is None
    one, other = (
        (
            store.images(rows).sample(grid := _grid(store, rows, found), mode="bilinear"),
            store.labels(rows).sample(grid, mode="nearest"),
        )
        for store in stores
    )
    assert torch.allclose(one[0], other[0], atol=1e-5)
    assert torch.equal(one[1], other[1])


def _grid(
    store: SliceStore, rows: list[int], found: list[tuple[Shape, Roi | None, WeakTransform]]
) -> Tensor:
    return store.grids(rows, [found[row][2] for row in rows])


@given(st.lists(shapes, min_size=1, max_size=4), st.booleans())
def test_the_room_that_is_needed_is_known_before(found: list[Shape], labelled: bool) -> None:
    slices = _slices([(shape, None, WeakTransform()) for shape in found])
    images = Planes.of([item.unit(SIZE).half() for item in slices]).maps_BCHW
    labels = Planes.of([torch.tensor(item.labels)[None] for item in slices]).maps_BCHW
    needed = images.nbytes + (labels.nbytes if labelled else 0)
    for most, fits in ((needed, True), (needed - 1, False)):
        store = SliceStore(slices, SIZE, {}, CPU, labelled=labelled, most_bytes=most)
        assert (store._images is not None) == fits


def _alone(
    item: Slice, transform: WeakTransform, drawn: rich.Variation, row: int
) -> tuple[Tensor, Tensor]:
    """A varied slice, step by step, as it was made before there were batches."""
    grid = frame.grid(frame.theta(item.image.shape, None, transform), SIZE)
    bend = _field(drawn.bend, row)
    grid = grid + float(drawn.elastic_B[row]) * bend.permute(1, 2, 0)
    image = frame.sample(item.unit(SIZE).half().float(), grid, mode="bilinear")
    labels = frame.sample(torch.tensor(item.labels)[None].float(), grid, mode="nearest")
    for value in labels.unique().long().tolist():
        if value:
            soft = F.avg_pool2d((labels == value).float()[None], 3, stride=1, padding=1)[0]
            image = image + soft * float(drawn.shift_BL[row, value])
    image = image.clamp(0, 1) ** float(drawn.gamma_B[row])
    image = image * torch.exp(float(drawn.bias_B[row]) * _field(drawn.shade, row))
    image = image + float(drawn.noise_B[row]) * noise.white(drawn.place_B2[row : row + 1], SIZE)[0]
    return image * float(drawn.gain_B[row]) + float(drawn.lift_B[row]), labels[0].long()


def _field(knots: noise.Knots, row: int) -> Tensor:
    count = int(knots.count_B[row])
    value = knots.value_BC66[row : row + 1, :, :count, :count]
    out = F.interpolate(value, size=(SIZE, SIZE), mode="bicubic", align_corners=True)[0]
    return out / out.std()


@pytest.mark.parametrize("device", DEVICES)
def test_labelled_slices_are_varied_at_once_as_each_alone(device: str) -> None:
    skip_without(device)
    slices = _slices([((40, 60), None, WeakTransform()), ((90, 52), None, WeakTransform())] * 3)
    config = _config()
    store = SliceStore(slices, SIZE, {}, torch.device(device), labelled=True)
    for seed in range(5):
        rows = [0, 3, 5, 4]
        batch = batches.labelled_batch(store, rows, config, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        how = config.labelled_augmentation
        assert how is not None
        drawn = rich.draw(rng, how, len(rows), 3)
        for place, row in enumerate(rows):
            transform = WeakTransform.draw(rng, how.geometry)
            image, labels = _alone(slices[row], transform, drawn, place)
            assert int((batch.labels_BHW[place].cpu() != labels).sum()) <= 2
            same = ~_near_border(labels.float())
            difference = (batch.image_B1HW[place].cpu() - image).abs()[0]
            assert float(difference[same].max()) < 1e-4


def _config(how: RichAugmentationConfig | None = RichAugmentationConfig()) -> TrainConfig:  # noqa: B008
    return dataclasses.replace(small_config(Path()), labelled_augmentation=how)


def test_weakly_varied_slices_keep_their_shape() -> None:
    """Contrast, brightness and the weak geometry only: a curve of the intensities, no noise."""
    labels = np.zeros((40, 40), np.uint8)
    labels[10:30, 12:28] = 1
    item = Slice("", 100 + 100 * labels, labels, "", windowed=True)
    batch = batches.labelled_batch(
        stored([item] * 6, SIZE, labelled=True), list(range(6)), _config(None),
        np.random.default_rng(0),
    )  # fmt: skip
    for image, found in zip(batch.image_B1HW, batch.labels_BHW, strict=True):
        inner = (found == 1) & ~_near_border(found.float())
        assert float(image[0][inner].std()) < 1e-3
        assert float(image[0][inner].mean()) > 1.3 * float(image[0][12:20, :2].mean())
    assert float(batch.image_B1HW.amax(dim=(1, 2, 3)).std()) > 0.05


@pytest.mark.parametrize("device", DEVICES)
def test_pseudo_labels_of_all_sizes_are_warped_at_once(device: str) -> None:
    skip_without(device)
    found = [
        ((30, 44), Roi(12.0, 20.0, 20.0, 3), WeakTransform(angle=0.3, shift_x=0.1)),
        ((100, 70), None, WeakTransform(zoom=1.4, mirror_y=True)),
    ]
    slices = _slices(list(found))
    grids = torch.stack([frame.grid(frame.theta(*case), SIZE) for case in found]).to(device)
    batch = batches.UnlabelledBatch(tuple(slices), grids, torch.zeros(2, 1, SIZE, SIZE))
    maps = [torch.from_numpy(item.image)[None] for item in slices]
    for mode in ("nearest", "bilinear"):
        warped = batch.warp(maps, mode=mode).cpu()
        for index, one in enumerate(maps):
            expected = frame.sample(one.float(), grids[index].cpu(), mode=mode)
            differ = (warped[index] - expected).abs() / 255 > 1e-4
            assert int(differ.sum()) <= (2 if mode == "nearest" else 0)
    inside = batch.inside().cpu()
    for index, grid in enumerate(grids.cpu()):
        assert torch.equal(inside[index], grid.abs().amax(dim=-1) <= 1)


@given(st.integers(1, 5), st.integers(1, 2), st.integers(0, 999), st.sampled_from([16, 64, 90]))
def test_smooth_fields_are_bicubic_between_their_knots(
    batch: int, channels: int, seed: int, size: int
) -> None:
    knots = noise.Knots.draw(np.random.default_rng(seed), batch, channels)
    fields = noise.smooth(knots, size)
    assert fields.shape == (batch, channels, size, size)
    for row, count in enumerate(knots.count_B.tolist()):
        assert 3 <= count <= 6
        value = knots.value_BC66[row : row + 1, :, :count, :count]
        alone = F.interpolate(value, size=(size, size), mode="bicubic", align_corners=True)[0]
        assert torch.allclose(fields[row], alone / alone.std(), atol=1e-4)
        assert float((fields[row][:, 1:] - fields[row][:, :-1]).abs().max()) < 52 / size


def test_white_noise_is_white_and_each_images_own() -> None:
    places = noise.draw_places(np.random.default_rng(0), 6)
    found = noise.white(places, 128)
    assert found.shape == (6, 1, 128, 128)
    assert float(found.mean()) == pytest.approx(0, abs=0.02)
    assert float(found.std()) == pytest.approx(1, abs=0.02)
    flat = found.flatten(1)
    assert float((torch.corrcoef(flat) - torch.eye(6)).abs().max()) < 0.05
    moved = found[..., 1:, :] * found[..., :-1, :]
    assert float(moved.mean()) == pytest.approx(0, abs=0.02)
    assert noise.white(places[:1], 1500).shape == (1, 1, 1500, 1500)
    assert torch.equal(found[:2], noise.white(places[:2], 128))


def test_what_is_drawn_has_the_distribution_that_is_configured() -> None:
    how = RichAugmentationConfig()
    drawn = rich.draw(np.random.default_rng(0), how, 4000, 4)
    for values, mean, deviation in (
        (drawn.elastic_B, how.elastic, 2 * how.elastic / math.sqrt(12)),
        (drawn.bias_B, how.bias / 2, how.bias / math.sqrt(12)),
        (drawn.noise_B, how.noise / 2, how.noise / math.sqrt(12)),
        (drawn.gamma_B.log(), 0, how.gamma),
        (drawn.shift_BL[:, 1:], 0, how.structure_shift),
        (drawn.gain_B, 1, 0.4 / math.sqrt(12)),
        (drawn.lift_B, 0, 0.05),
    ):
        assert float(values.mean()) == pytest.approx(mean, abs=0.06 * deviation)
        assert float(values.std()) == pytest.approx(deviation, rel=0.05)
    assert not bool(drawn.shift_BL[:, 0].any()), "background stays"
    assert torch.equal(torch.bincount(drawn.bend.count_B) > 0, torch.arange(7) >= 3)


def test_records_keep_their_numbers_on_the_way_to_a_device() -> None:
    drawn = rich.draw(np.random.default_rng(3), RichAugmentationConfig(), 4, 3)
    moved = to_device(drawn, CPU)
    for one, other in ((drawn.gamma_B, moved.gamma_B), (drawn.place_B2, moved.place_B2)):
        assert torch.equal(one, other)
    assert torch.equal(drawn.bend.value_BC66, moved.bend.value_BC66)
