"""Training and prediction see the same pixels: units, resolutions, orientations, slicing axes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import structlog
import torch
import yaml
from PIL import Image
from scipy import ndimage
from typer.testing import CliRunner

from ssl_trainer import config as configuration
from ssl_trainer.cli import app
from ssl_trainer.data import batches, cases, frame
from ssl_trainer.data.slices import read_slices
from ssl_trainer.evaluation.metrics import Spacing, score
from ssl_trainer.training.trainer import Trainer, load_student
from support import picture
from trainer_support import UNET, small_config, write_case, write_dataset
from vessa_client import UInt8Array, files

SHAPE = (192, 160, 6)
CT = np.array([[-0.8, 0, 0, 70], [0, 0.8, 0, -60], [0, 0, 2.0, -300], [0, 0, 0, 1.0]])


def _write_ct(root: Path, name: str, seed: int) -> None:
    """Air, noisy tissue, bone far beyond the window, and a liver a little brighter than tissue."""
    rng = np.random.default_rng(seed)
    x, y = np.mgrid[: SHAPE[0], : SHAPE[1]]
    centre = np.array([90, 80]) + rng.integers(-12, 12, 2)
    liver = ((x - centre[0]) / 34) ** 2 + ((y - centre[1]) / 26) ** 2 < 1
    plane = np.full(SHAPE[:2], -1000.0)
    plane[16:176, 14:146] = 0
    plane[liver] = 130
    plane[20:40, 60:100] = 3000
    volume = plane[..., None] + rng.normal(0, 20, SHAPE)
    labels = np.repeat(liver[..., None], SHAPE[2], axis=2).astype(np.uint8)
    for folder, pixels in (("Image", volume.astype(np.int16)), ("Mask", labels)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(pixels, CT), root / folder / f"{name}.nii.gz")


@pytest.fixture(scope="module")
def abdomen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders Image and Mask, what was prepared of them at half of the resolution, and a run."""
    root = tmp_path_factory.mktemp("ct")
    for index in range(4):
        _write_ct(root, f"c{index}", index)
    recipe = {
        "prepare": {
            "structures": {1: "liver"},
            "window": [-160, 240],
            "size": 96,
            "slice_mm": 2.0,
            "labelled": 0.9,
            "val": 0.0,
            "test": 0.25,
        },
        "train": {
            "data": {"size": 48},
            "student": {"kind": "unet", "channels": list(UNET.channels)},
            "unimatch": {"weight": 0},
            "regions": False,
            "labelled_augmentation": None,
            "precision": "fp32",
            "learning_rate": 0.01,
            "steps": 120,
        },
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    _succeed("prepare", root / "recipe.yaml", "--out", root / "out", *_folders(root))
    config = configuration.load(root / "out" / "config.yaml")
    Trainer(config, root / "run").run()
    return root


def _folders(root: Path) -> tuple[object, ...]:
    return ("--images", root / "Image", "--labels", root / "Mask")


def _succeed(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


def _voxels(file: Path) -> UInt8Array:
    return np.asarray(nib.as_closest_canonical(nib.load(file)).dataobj, np.uint8)


def test_original_and_prepared_volumes_are_the_same_to_a_student(abdomen: Path) -> None:
    """The one in Hounsfield units at full resolution, the other of 8 bits at half of it."""
    (test,) = (f for f in files.find_images(abdomen / "out" / "test"))
    original = abdomen / "Image" / test.name
    prepared, native = (files.read(f) for f in (test, original))
    assert prepared.pixels.shape == (96, 80, 6)
    assert native.pixels.min() < -900
    assert native.pixels.max() > 2900
    config = configuration.load(abdomen / "run" / "config.yaml")
    assert config.data.window == (-160.0, 240.0)
    window, size = config.data.window, config.data.size
    one, other = (
        [
            frame.resample(frame.unit(s, size, window), frame.theta(s.shape), size, mode="bilinear")
            for s in image.slices()
        ]
        for image in (prepared, native)
    )
    differences = torch.stack([(a - b).abs() for a, b in zip(one, other, strict=True)])
    assert float(differences.max()) < 2 / 255
    assert float(differences.mean()) < 0.5 / 255

    for name in ("original", "prepared"):
        (abdomen / name).mkdir()
    shutil.copy(original, abdomen / "original")
    shutil.copy(test, abdomen / "prepared")
    maps = {}
    for name in ("original", "prepared"):
        _succeed("predict", abdomen / "run", abdomen / name, "--out", abdomen / f"{name}_out")
        written = next((abdomen / f"{name}_out").glob("*_seg.nii.gz"))
        assert np.allclose(nib.load(written).affine, nib.load(abdomen / name / test.name).affine)
        maps[name] = _voxels(written)
    truth = _voxels(abdomen / "Mask" / test.name)
    spacing = Spacing(sizes=(1.0, 1.0, 1.0), unit="pixels")
    assert score("", maps["original"], truth, 1, spacing).dice[0] > 0.8
    coarse = maps["original"][::2, ::2]
    border = ndimage.binary_dilation(coarse, iterations=2) & ~ndimage.binary_erosion(coarse)
    assert np.array_equal(coarse[~border], maps["prepared"][~border])
    assert (coarse == maps["prepared"]).mean() > 0.99


def test_training_sees_what_prediction_sees(abdomen: Path) -> None:
    config = configuration.load(abdomen / "run" / "config.yaml")
    case = cases.find(config.data).labelled[0]
    items = read_slices((case,), 1, labelled=True)
    size, window = config.data.size, config.data.window
    for item, native in zip(items, case.read().slices(), strict=True):
        assert item.image.dtype == np.uint8
        seen = frame.resample(
            frame.unit(native, size, window), frame.theta(native.shape), size, mode="bilinear"
        )
        # What is kept of a large slice has 11 bits.
        assert np.allclose(batches.canonical(item, size, None), seen, atol=5e-4)


@pytest.mark.parametrize(
    ("scale", "warned"), [(None, False), ((0.0, 1.0), True), ((0.0, 255.0), True)]
)
def test_images_of_another_unit_are_named(
    abdomen: Path, tmp_path: Path, scale: tuple[float, float] | None, warned: bool
) -> None:
    pixels = np.asarray(nib.load(abdomen / "Image" / "c0.nii.gz").dataobj).astype(np.float32)
    if scale is not None:
        pixels = np.interp(pixels, (-160, 240), scale).astype(np.float32)
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(pixels, CT), tmp_path / "in" / "c0.nii.gz")
    said = _succeed("predict", abdomen / "run", tmp_path / "in", "--out", tmp_path / "out")
    assert ("Warning" in said and "c0.nii.gz" in said and "data.window" in said) == warned
    assert (tmp_path / "out" / "c0_seg.nii.gz").is_file()


@pytest.fixture(scope="module")
def pictures_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder ``data`` and a run on it that was trained without a server."""
    root = tmp_path_factory.mktemp("pictures")
    config = small_config(write_dataset(root / "data"), steps=80)
    alone = replace(config.unimatch, weight=0)
    Trainer(replace(config, unimatch=alone, learning_rate=1e-2), root / "run").run()
    return root


def test_a_volume_has_the_same_labels_however_it_is_stored(
    pictures_run: Path, tmp_path: Path
) -> None:
    image = nib.load(pictures_run / "data" / "val" / "p3_frame01.nii.gz")
    (tmp_path / "in").mkdir()
    nib.save(image, tmp_path / "in" / "plain.nii.gz")
    for order in ((1, 0, 2), (2, 0, 1), (0, 2, 1)):
        for signs in ((1, 1, 1), (-1, 1, -1)):
            turned = image.as_reoriented(np.array([*zip(order, signs, strict=True)], dtype=float))
            name = "".join(f"{a}{'+' if s > 0 else '-'}" for a, s in zip(order, signs, strict=True))
            nib.save(turned, tmp_path / "in" / f"{name}.nii.gz")
    _succeed("predict", pictures_run / "run", tmp_path / "in", "--out", tmp_path / "out")
    expected = _voxels(tmp_path / "out" / "plain_seg.nii.gz")
    assert len(np.unique(expected)) > 1
    written = sorted((tmp_path / "out").iterdir())
    assert len(written) == 7
    for file in written:
        source = nib.load(tmp_path / "in" / file.name.replace("_seg", ""))
        assert nib.load(file).shape == source.shape
        assert np.allclose(nib.load(file).affine, source.affine)
        assert np.array_equal(_voxels(file), expected)


def test_a_bad_file_does_not_keep_the_others_from_being_predicted(
    pictures_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    shutil.copytree(pictures_run / "data" / "val", folder)
    (folder / "a_broken.nii.gz").write_bytes(b"no volume")
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 4, 2), np.uint8), CT), folder / "b_film.nii.gz")
    said = _succeed("predict", pictures_run / "run", folder, "--out", tmp_path / "out", code=1)
    assert "a_broken.nii.gz: cannot be read" in said
    assert "b_film.nii.gz: shape (8, 8, 4, 2)" in said
    assert "2 of 3 images" in said
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["p3_frame01_seg.nii.gz"]


def test_a_full_disk_or_a_closed_file_is_named_and_the_others_are_predicted(
    pictures_run: Path, tmp_path: Path
) -> None:
    """Where the label map of one is to be, there is a file in place of its folder."""
    folder, out = tmp_path / "in", tmp_path / "out"
    for place in ("a", "b"):
        shutil.copytree(pictures_run / "data" / "val", folder / place)
    out.mkdir()
    (out / "a").touch()
    said = _succeed("predict", pictures_run / "run", folder, "--out", out, code=1)
    assert f"Error {folder / 'a' / 'p3_frame01.nii.gz'}: " in said
    assert "1 of 2 images" in said
    assert (out / "b" / "p3_frame01_seg.nii.gz").is_file()


def test_label_maps_may_lie_beside_their_images_and_none_hides_another(
    pictures_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for seed, name in enumerate(("scan.png", "scan.tif", "other.png")):
        Image.fromarray(picture(seed, (44, 48))[0]).save(folder / name)
    expected = {"scan.png_seg.png", "scan.tif_seg.png", "other_seg.png"}
    for _ in range(2):
        _succeed("predict", pictures_run / "run", folder, "--out", folder / ".." / "in")
        assert {f.name for f in folder.glob("*_seg*")} == expected


def test_a_run_keeps_its_slicing_axis(tmp_path: Path) -> None:
    """Labelled volumes are axial; the unlabelled one would be sliced otherwise by its spacing."""
    root = write_dataset(tmp_path / "data")
    write_case(root / "train", "p2_frame01", 5, labelled=False, depth=44)
    file = root / "train" / "p2_frame01.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(nib.load(file).dataobj), np.diag([6.0, 1, 1, 1])), file)
    assert files.read(file).axis == 0
    config = small_config(root)
    with structlog.testing.capture_logs() as logs:
        trainer = Trainer(config, tmp_path / "run")
    assert [line["name"] for line in logs if line["event"] == "data.axis"] == ["axial"]
    assert {s.image.shape for s in trainer.unlabelled} == {(44, 48)}
    trainer.run()
    kept = configuration.load(tmp_path / "run" / "config.yaml")
    assert kept.data.axis == 2
    predictor = load_student(tmp_path / "run", kept)
    assert predictor.axis == predictor.plain().axis == 2
    _succeed("predict", tmp_path / "run", root / "train", "--out", tmp_path / "out")
    image = files.read(file, axis=2)
    found = files.read(tmp_path / "out" / "p2_frame01_seg.nii.gz", axis=2, labels=True)
    assert np.array_equal(found.pixels, np.stack(predictor(image), axis=2))
    again = Trainer(config, tmp_path / "run")
    again.prepare()
    assert again.step == config.steps
    chosen = replace(config, data=replace(config.data, axis=0))
    assert {s.image.shape[0] for s in Trainer(chosen, tmp_path / "o").labelled} == {48}
