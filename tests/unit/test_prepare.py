"""Preparation of published data sets, on made-up volumes in the layout of AbdomenCT-1K."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from ssl_trainer.cli import app
from ssl_trainer.config import ConfigError
from ssl_trainer.config import load as load_config
from ssl_trainer.data import cases, frame, prepare
from ssl_trainer.data.slices import read_slices
from support import ROOT
from vessa_client import files

RECIPE = ROOT / "examples" / "abdomenct-1k.yaml"
AFFINE = np.array([[-0.8, 0, 0, 150], [0, 0.8, 0, -120], [0, 0, 2.0, -300], [0, 0, 0, 1.0]])
CENTRE, RADIUS = np.array([105.0, 150.0, 12.0]), np.array([38.0, 25.0, 6.0])


def _write(root: Path, patients: int, shape: tuple[int, int, int] = (320, 240, 24)) -> None:
    """Air, soft tissue, and a bright liver at a known place."""
    x, y, z = np.ogrid[tuple(slice(n) for n in shape)]
    liver = (
        sum(((axis - c) / r) ** 2 for axis, c, r in zip((x, y, z), CENTRE, RADIUS, strict=True)) < 1
    )
    for folder in ("Image", "Mask"):
        (root / folder).mkdir(parents=True)
    for index in range(patients):
        image = np.full(shape, -1000, dtype=np.int16)
        image[60:250, 50:210] = 40
        image[liver] = 120
        name = f"Case_{index + 1:05d}"
        nib.save(nib.Nifti1Image(image, AFFINE), root / "Image" / f"{name}_0000.nii.gz")
        labels = liver.astype(np.uint8) + 4 * (image == -1000).astype(np.uint8)
        labels[labels > 4] = 7
        nib.save(nib.Nifti1Image(labels, AFFINE), root / "Mask" / f"{name}.nii.gz")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("abdomen")
    _write(root, 10)
    out = root / "out"
    command = ["prepare", str(RECIPE), "--out", str(out)]
    folders = ["--images", str(root / "Image"), "--labels", str(root / "Mask")]
    result = CliRunner().invoke(app, [*command, *folders])
    assert result.exit_code == 0, result.output
    return out


def test_the_written_configuration_trains_on_the_written_data(prepared: Path) -> None:
    config = load_config(prepared / "config.yaml")
    assert config.data.classes == ("liver", "kidney", "spleen", "pancreas")
    found = cases.find(config.data)
    assert [len(part) for part in (found.labelled, found.unlabelled, found.val, found.test)] == [
        1, 7, 1, 1,
    ]  # fmt: skip
    assert len(read_slices(found.labelled, 4, labelled=True)) == 10


def test_places_in_the_body_stay_where_they_are(prepared: Path) -> None:
    for file in sorted((prepared / "train").glob("*_gt.nii.gz"))[:2]:
        labels = nib.load(file)
        mask = np.asarray(labels.dataobj) == 1
        volume = mask.sum() * abs(np.linalg.det(labels.affine[:3, :3]))
        expected = 4 / 3 * np.pi * np.prod(RADIUS) * abs(np.linalg.det(AFFINE[:3, :3]))
        # Five thick slices of an ellipsoid: its ends are rounded off.
        assert volume == pytest.approx(expected, rel=0.1)
        centre = labels.affine @ [*np.argwhere(mask).mean(axis=0), 1]
        assert np.allclose(centre, AFFINE @ [*CENTRE, 1], atol=1.0)


def test_window_size_and_spacing_are_those_of_the_recipe(prepared: Path) -> None:
    file = next(f for f in (prepared / "train").iterdir() if "_gt" not in f.name)
    image = nib.load(file)
    assert image.shape == (256, 192, 10)
    assert image.header.get_zooms() == pytest.approx((1.0, 1.0, 4.8))
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert image.get_data_dtype() == np.uint8
    pixels = np.asarray(image.dataobj)[::-1]  # the files are mirrored
    for place, unit in {(0, 0, 0): -160, (60, 60, 0): 40, (84, 120, 5): 120}.items():
        assert pixels[place] == pytest.approx(unit, abs=400 / 255)
    assert load_config(prepared / "config.yaml").data.window == (-160, 240)
    assert load_config(prepared / "config.yaml").data.axis == 2


@pytest.mark.parametrize("window", [(-160, 240), (-1000, 3000), (0.1, 0.7)])
def test_the_window_of_stored_volumes_gives_what_was_stored(
    tmp_path: Path, window: tuple[float, float]
) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    scaling = ((window[1] - window[0]) / 255, window[0])
    files.write_volume(tmp_path / "a.nii.gz", grey, np.eye(4), scaling=scaling)
    read = files.read(tmp_path / "a.nii.gz")
    assert np.array_equal(frame.windowed(read.pixels, window), grey)


def test_labels_are_taken_from_the_same_places(tmp_path: Path) -> None:
    _write(tmp_path, 3, (64, 48, 12))
    recipe = prepare.load(RECIPE)
    prepare.prepare(recipe, tmp_path / "Image", tmp_path / "Mask", tmp_path / "plain")
    order = np.array([[1, -1], [0, 1], [2, -1]], dtype=float)
    for file in (tmp_path / "Mask").iterdir():
        nib.save(nib.load(file).as_reoriented(order), file)
    prepare.prepare(recipe, tmp_path / "Image", tmp_path / "Mask", tmp_path / "turned")
    found = sorted((tmp_path / "plain").rglob("*_gt.nii.gz"))
    assert found
    for file in found:
        other = tmp_path / "turned" / file.relative_to(tmp_path / "plain")
        assert np.array_equal(nib.load(file).dataobj, nib.load(other).dataobj)
    moved = AFFINE.copy()
    moved[0, 3] += 20
    file = next((tmp_path / "Mask").iterdir())
    nib.save(nib.Nifti1Image(np.zeros((64, 48, 12), np.uint8), moved), file)
    with pytest.raises(files.FileError, match=r"12 voxels of 0\.8 x 0\.8 x 2 mm from"):
        prepare.prepare(recipe, tmp_path / "Image", tmp_path / "Mask", tmp_path / "moved")


def test_volumes_of_another_recipe_are_not_mixed_in(tmp_path: Path) -> None:
    _write(tmp_path, 3, (64, 64, 12))
    recipe = prepare.load(RECIPE)
    folders = (tmp_path / "Image", tmp_path / "Mask", tmp_path / "out")
    prepare.prepare(recipe, *folders)
    other = replace(recipe, prepare=replace(recipe.prepare, window=(-100, 300)))
    with pytest.raises(ConfigError, match="another recipe"):
        prepare.prepare(other, *folders)
    (tmp_path / "out" / prepare.RECIPE_FILE).unlink()
    with pytest.raises(ConfigError, match="another recipe"):
        prepare.prepare(recipe, *folders)


def test_labels_that_are_not_asked_for_become_background(tmp_path: Path) -> None:
    _write(tmp_path, 3, (64, 64, 12))
    config = prepare.PrepareConfig(structures={4: "air"}, window=(-160, 240), val=0, test=0)
    out = tmp_path / "out"
    prepare.prepare(prepare.Recipe(prepare=config), tmp_path / "Image", tmp_path / "Mask", out)
    labels = np.asarray(nib.load(next((out / "train").glob("*_gt.nii.gz"))).dataobj)
    assert set(np.unique(labels)) == {0, 1}


def test_a_run_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    _write(tmp_path, 3, (64, 64, 12))
    recipe = prepare.load(RECIPE)
    out = tmp_path / "out"
    prepare.prepare(recipe, tmp_path / "Image", tmp_path / "Mask", out)
    kept, lost = sorted(f for f in (out / "train").iterdir() if "_gt" not in f.name)[:2]
    before = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    prepare.prepare(recipe, tmp_path / "Image", tmp_path / "Mask", out)
    assert (kept.stat().st_mtime_ns, lost.read_bytes()) == before


def test_patients_without_labels_are_for_training(tmp_path: Path) -> None:
    _write(tmp_path, 20, (8, 8, 4))
    for index in (1, 2, 3):
        (tmp_path / "Mask" / f"Case_{index:05d}.nii.gz").unlink()
    config = prepare.load(RECIPE).prepare
    parts = prepare.split(config, prepare.find(config, tmp_path / "Image", tmp_path / "Mask"))
    names = {part: {p.name for p in patients} for part, patients in parts.items()}
    assert {"Case_00001", "Case_00002", "Case_00003"} <= names["train"] - names["labelled"]
    assert not names["train"] & (names["val"] | names["test"])
    assert not names["val"] & names["test"]
    assert len(names["train"] | names["val"] | names["test"]) == 20


def test_errors_name_the_key(tmp_path: Path) -> None:
    config = prepare.load(RECIPE).prepare
    with pytest.raises(ConfigError, match="no volume with a label"):
        prepare.find(config, tmp_path, tmp_path)
    file = tmp_path / "recipe.yaml"
    file.write_text("prepare: {structures: {1: liver}, window: [240, -160]}\n")
    with pytest.raises(ConfigError, match="window"):
        prepare.load(file)
