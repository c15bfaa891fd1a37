"""Scores against brute force, in 2D and 3D, and the unit of their distances."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from ssl_trainer.cli import app
from ssl_trainer.evaluation import metrics, volumes
from ssl_trainer.evaluation.metrics import CaseScores, Spacing
from ssl_trainer.training.trainer import Trainer
from support import picture
from trainer_support import AFFINE, small_config, write_dataset
from vessa_client import UInt8Array, files


def _surface(mask: np.ndarray) -> np.ndarray:
    """Voxels with a neighbour across a face that is background or outside, one by one."""
    points = []
    for at in np.argwhere(mask):
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            near = at.copy()
            near[axis] += step
            outside = not 0 <= near[axis] < mask.shape[axis]
            if outside or not mask[tuple(near)]:
                points.append(at)
                break
    return np.array(points, dtype=float)


def _brute_force(
    predicted: np.ndarray, truth: np.ndarray, sizes: tuple[float, ...]
) -> tuple[float, float]:
    """HD95 and ASD from the distances of all pairs of surface voxels."""
    one, other = (_surface(mask) * sizes for mask in (predicted, truth))
    pairs = np.sqrt(((one[:, None] - other[None]) ** 2).sum(axis=2))
    there, back = pairs.min(axis=1), pairs.min(axis=0)
    hd95 = max(float(np.percentile(d, 95)) for d in (there, back))
    return hd95, float(np.concatenate([there, back]).mean())


@st.composite
def _masks(draw: st.DrawFn, axes: int) -> tuple[UInt8Array, UInt8Array, tuple[float, ...]]:
    """Two boxes with specks and holes, which may touch the border, and a spacing."""
    shape = tuple(draw(st.lists(st.integers(2, 9), min_size=axes, max_size=axes)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pair = []
    for _ in range(2):
        mask = np.zeros(shape, np.uint8)
        corners = [np.sort(rng.choice(n + 1, 2, replace=False)) for n in shape]
        mask[tuple(slice(low, high) for low, high in corners)] = 1
        changed = rng.random(shape) < draw(st.sampled_from([0.0, 0.05, 0.3]))
        mask[changed] = 1 - mask[changed]
        mask[tuple(rng.integers(0, shape))] = 1  # not empty
        pair.append(mask)
    size = st.floats(0.2, 9.0)
    return pair[0], pair[1], tuple(draw(st.lists(size, min_size=axes, max_size=axes)))


def _scored(predicted: UInt8Array, truth: UInt8Array, sizes: tuple[float, ...]) -> CaseScores:
    return metrics.score("x", predicted, truth, 1, Spacing(sizes=sizes, unit="mm"))


def _is_brute_force(
    found: CaseScores, predicted: UInt8Array, truth: UInt8Array, sizes: tuple[float, ...]
) -> None:
    both = int((predicted & truth).sum())
    dice = 2 * both / int(predicted.sum() + truth.sum())
    assert found.dice[0] == pytest.approx(dice, abs=1e-6)
    hd95, asd = _brute_force(predicted, truth, sizes)
    assert found.hd95[0] == pytest.approx(hd95, rel=1e-4, abs=1e-5)
    assert found.asd[0] == pytest.approx(asd, rel=1e-4, abs=1e-5)


@settings(max_examples=60)
@given(_masks(3))
def test_scores_of_a_volume_are_those_of_brute_force(
    drawn: tuple[UInt8Array, UInt8Array, tuple[float, ...]],
) -> None:
    predicted, truth, sizes = drawn
    _is_brute_force(_scored(predicted, truth, sizes), predicted, truth, sizes)


@settings(max_examples=60)
@given(_masks(2), st.integers(0, 2), st.floats(0.2, 9.0))
def test_scores_of_one_slice_are_those_of_brute_force_in_2d(
    drawn: tuple[UInt8Array, UInt8Array, tuple[float, ...]], axis: int, thickness: float
) -> None:
    predicted, truth, sizes = drawn
    flat = [np.expand_dims(mask, axis) for mask in (predicted, truth)]
    found = _scored(flat[0], flat[1], (*sizes[:axis], thickness, *sizes[axis:]))
    _is_brute_force(found, predicted, truth, sizes)


def test_a_shifted_square_is_as_far_away_as_it_was_shifted() -> None:
    truth, predicted = np.zeros((1, 32, 32), np.uint8), np.zeros((1, 32, 32), np.uint8)
    truth[0, 8:18, 8:18], predicted[0, 12:22, 8:18] = 1, 1
    found = _scored(predicted, truth, (1.0, 1.0, 1.0))
    assert (found.hd95[0], found.asd[0]) == (4.0, 2.0)


def test_missing_structures_are_scored_and_not_forgotten() -> None:
    for shape, diagonal in (((4, 4, 4), 48), ((1, 4, 4), 32)):
        empty, full = np.zeros(shape, np.uint8), np.ones(shape, np.uint8)
        both = _scored(empty, empty, (1.0, 1.0, 1.0))
        assert (both.dice[0], both.hd95[0], both.asd[0]) == (1, 0, 0)
        for predicted, truth in ((empty, full), (full, empty)):
            lost = _scored(predicted, truth, (1.0, 1.0, 1.0))
            assert lost.dice[0] == 0
            assert lost.hd95[0] == lost.asd[0] == pytest.approx(np.sqrt(diagonal))


@pytest.mark.parametrize(
    ("zooms", "unit", "expected"),
    [
        ((1.4, 1.6, 8.0), "mm", ((1.4, 1.6, 8.0), "mm")),
        ((1.4, 1.6, 8.0), "unknown", ((1.4, 1.6, 8.0), "mm")),
        ((1.0, 1.0, 1.0), "mm", ((1.0, 1.0, 1.0), "mm")),
        ((1.0, 1.0, 1.0), "unknown", ((1.0, 1.0, 1.0), "pixels")),
        ((0.0014, 0.0016, 0.008), "meter", ((1.4, 1.6, 8.0), "mm")),
        ((500.0, 250.0, 1000.0), "micron", ((0.5, 0.25, 1.0), "mm")),
    ],
)
def test_distances_are_in_mm_where_the_file_knows_the_spacing(
    tmp_path: Path, zooms: tuple[float, ...], unit: str, expected: tuple[Any, str]
) -> None:
    image = nib.Nifti1Image(np.zeros((5, 6, 7), np.uint8), np.diag([*zooms, 1.0]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii")
    found = volumes.spacing(files.read(tmp_path / "a.nii"))
    assert found.sizes == pytest.approx(expected[0])
    assert found.unit == expected[1]


def test_the_spacing_belongs_to_the_axes_of_the_slices(tmp_path: Path) -> None:
    """Stored with slices first, from left to right."""
    affine = np.zeros((4, 4))
    affine[0, 0], affine[1, 2], affine[2, 1], affine[3, 3] = 8.0, 1.4, 1.6, 1.0
    nib.save(nib.Nifti1Image(np.zeros((3, 40, 50), np.uint8), affine), tmp_path / "a.nii.gz")
    image = files.read(tmp_path / "a.nii.gz")
    stacked = volumes.stack([np.zeros(s.shape, np.uint8) for s in image.slices()], image)
    by_length = dict(zip(stacked.shape, volumes.spacing(image).sizes, strict=True))
    assert by_length == pytest.approx({3: 8.0, 40: 1.6, 50: 1.4})


def test_a_picture_is_measured_in_pixels(tmp_path: Path) -> None:
    Image.fromarray(picture(0)[0]).save(tmp_path / "a.png")
    assert volumes.spacing(files.read(tmp_path / "a.png")).unit == "pixels"


@pytest.mark.parametrize(("flat", "unit"), [(False, "mm"), (True, "pixels")])
def test_tables_reports_and_files_name_the_unit(tmp_path: Path, flat: bool, unit: str) -> None:
    root = write_dataset(tmp_path / "data")
    if flat:
        for file in (root / "val").iterdir():
            file.unlink()
        for suffix, pixels in zip(("", "_gt"), picture(3), strict=True):
            Image.fromarray(pixels).save(root / "val" / f"p3_frame01{suffix}.png")
    run = tmp_path / "run"
    Trainer(small_config(root), run).run()
    result = CliRunner().invoke(app, ["evaluate", str(run)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert f"HD95 ({unit})" in result.output
    assert [s["unit"] for s in json.loads((run / "scores_val.json").read_text())] == [unit]
    assert CliRunner().invoke(app, ["report", str(run)]).exit_code == 0
    assert f"| Dice | HD95 ({unit}) | ASD ({unit}) |" in (run / "report.md").read_text()


def test_files_with_and_without_spacing_are_not_of_one_unit() -> None:
    mask = np.ones((1, 4, 4), np.uint8)
    sizes = (1.0, *np.abs(np.diag(AFFINE)[:2]).tolist())
    scores = [
        metrics.score("a", mask, mask, 1, Spacing(sizes=sizes, unit="mm")),
        metrics.score("b", mask, mask, 1, Spacing(sizes=(1.0, 1.0, 1.0), unit="pixels")),
    ]
    assert metrics.distance_unit(scores) == "mm and pixels"
