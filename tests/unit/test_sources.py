"""Data sets of users: layouts, label names, windows, spacing, and errors that say what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from vessa_server.training import layouts
from vessa_server.training.config import ConfigError, SourceConfig, load
from vessa_server.training.layouts import DataError
from vessa_server.training.sources import FolderSource
from vessa_server.training.tasks import ClassText

RNG = np.random.default_rng
TEXTS = (ClassText(name="x"),)


def _volume(file: Path, array: np.ndarray[tuple[int, ...], np.dtype[np.int16]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 2.5, 1.0])), file)


def _ct(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hounsfield-like values with a liver (label 1) and a spleen (label 3)."""
    image = RNG(seed).integers(-1000, 1000, (20, 24, 6)).astype(np.int16)
    labels = np.zeros_like(image)
    labels[4:10, 4:10], labels[12:18, 12:20] = 1, 3
    image[labels == 1], image[labels == 3] = 60, 300
    return image, labels


def _msd(root: Path) -> Path:
    for index in range(3):
        image, labels = _ct(index)
        _volume(root / "imagesTr" / f"case_{index}.nii.gz", np.stack([image, -image], axis=3))
        _volume(root / "labelsTr" / f"case_{index}.nii.gz", labels)
    (root / "labelsTr" / "._case_0.nii.gz").write_bytes(b"of a Mac")
    names = {"0": "background", "1": "liver", "3": "spleen"}
    (root / "dataset.json").write_text(json.dumps({"labels": names}))
    return root


def _nnunet(root: Path) -> Path:
    for index in range(3):
        image, labels = _ct(index)
        _volume(root / "imagesTr" / f"case_{index}_0000.nii.gz", image)
        _volume(root / "imagesTr" / f"case_{index}_0001.nii.gz", -image)
        _volume(root / "labelsTr" / f"case_{index}.nii.gz", labels)
    names = {"background": 0, "liver": 1, "spleen": 3}
    (root / "dataset.json").write_text(json.dumps({"labels": names}))
    return root


@pytest.mark.parametrize("layout", ["msd", "nnunet"])
@pytest.mark.parametrize("channel", [0, 1])
def test_both_layouts_give_the_same_images_labels_and_names(
    tmp_path: Path, layout: layouts.Layout, channel: int
) -> None:
    (_msd if layout == "msd" else _nnunet)(tmp_path / "set")
    config = SourceConfig(folder="set", layout=layout, window=(-160, 240), channel=channel)
    source = FolderSource(config, tmp_path)
    items, texts = source.sample(RNG(0), 2)
    assert [t.name for t in texts] == ["liver", "spleen"]
    for item in items:
        assert item.image.dtype == np.uint8
        assert set(np.unique(item.labels)) == {0, 1, 2}
        liver, spleen = (
            (140, 255) if channel == 0 else (64, 0)  # (60 + 160) / 400 * 255, and of -60
        )
        assert set(np.unique(item.image[item.labels == 1])) == {liver}
        assert set(np.unique(item.image[item.labels == 2])) == {spleen}


def test_slices_across_thick_ones_get_square_pixels(tmp_path: Path) -> None:
    _msd(tmp_path / "set")
    for axis, shape in ((2, (20, 24)), (0, (24, 15)), (1, (20, 15))):
        config = SourceConfig(folder="set", layout="msd", axes=(axis,))
        items, _ = FolderSource(config, tmp_path).sample(RNG(1), 2)
        assert [i.image.shape for i in items] == [shape] * 2
        assert [i.labels.shape for i in items] == [shape] * 2
    flat = SourceConfig(folder="set", layout="msd", axes=(0,), spacing=(1, 1, 1))
    assert FolderSource(flat, tmp_path).sample(RNG(1), 1)[0][0].image.shape == (24, 6)


def test_pictures_lie_beside_their_labels(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    for index in range(3):
        label = np.zeros((20, 30), np.uint8)
        label[5:12, 4:20] = 255
        Image.fromarray(label // 2).save(tmp_path / "p" / f"{index}.png")
        Image.fromarray(label).save(tmp_path / "p" / f"{index}_gt.png")
    source = FolderSource(SourceConfig(folder="p", classes=TEXTS, binary=True), tmp_path)
    items, _ = source.sample(RNG(0), 3)
    assert all(i.image.shape == i.labels.shape == (20, 30) for i in items)
    assert all(set(np.unique(i.labels)) == {0, 1} for i in items)


def test_held_out_subjects_are_never_trained_on(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    for index in range(23):
        array = np.full((8, 8), index, np.uint8)
        Image.fromarray(array).save(tmp_path / "p" / f"{index:02d}.png")
        Image.fromarray(np.ones_like(array)).save(tmp_path / "p" / f"{index:02d}_gt.png")
    config = SourceConfig(folder="p", classes=TEXTS)
    seen = []
    for held_out in (False, True):
        items, _ = FolderSource(config, tmp_path, held_out=held_out).sample(RNG(0), 200)
        seen.append({int(i.image[0, 0]) for i in items})
    assert seen[1] == {9, 19}
    assert seen[0] == set(range(23)) - seen[1]


def test_subjects_that_do_not_fit_into_memory_are_read_again(tmp_path: Path) -> None:
    _msd(tmp_path / "set")
    drawn = [
        FolderSource(SourceConfig(folder="set", layout="msd", memory_gib=memory), tmp_path).sample(
            RNG(5), 6
        )[0]
        for memory in (4.0, 0.0)
    ]
    for one, other in zip(*drawn, strict=True):
        assert np.array_equal(one.image, other.image)


def test_errors_name_the_folder_and_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder .*nothing"):
        FolderSource(SourceConfig(folder="nothing", classes=TEXTS), tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no labelled images of layout 'plain'"):
        FolderSource(SourceConfig(folder="empty", classes=TEXTS), tmp_path)
    root = _nnunet(tmp_path / "set")
    with pytest.raises(DataError, match="case_0_0007"):
        FolderSource(SourceConfig(folder="set", layout="nnunet", channel=7), tmp_path)
    (root / "dataset.json").write_text(json.dumps({"labels": {"whole": [1, 2]}}))
    with pytest.raises(DataError, match="no regions"):
        FolderSource(SourceConfig(folder="set", layout="nnunet"), tmp_path)
    (root / "dataset.json").unlink()
    with pytest.raises(DataError, match="set `classes`"):
        FolderSource(SourceConfig(folder="set", layout="nnunet"), tmp_path)
    (root / "imagesTr" / "case_0_0000.nii.gz").write_bytes(b"broken")
    source = FolderSource(SourceConfig(folder="set", layout="nnunet", classes=TEXTS), tmp_path)
    with pytest.raises(DataError, match=r"case_0_0000\.nii\.gz cannot be read"):
        source.sample(RNG(0), 3)


def test_configurations_are_checked_key_by_key(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    for text, words in (
        ("training: {steps: 0}", "steps: 0, expected at least 1"),
        ("training: {steps: 3, speed: 9}", "training.speed"),
        ("training: {steps: 3}\ndata: {sources: [{folder: a, axes: [3]}]}", "axes"),
        ("training: {steps: 3}\ndata: {sources: [{folder: a, layout: odd}]}", "layout"),
        ("steps: 3", "key `training`"),
        ("training: [", "not YAML"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=words):
            load(file)
    with pytest.raises(ConfigError, match="one of base, nano"):
        load("medium")
    file.write_text("training: {steps: 3}")
    assert load(file, {"steps": 7, "seed": None}).training.steps == 7


def test_recipes_are_valid_and_never_train_on_acdc() -> None:
    for recipe in ("nano", "base"):
        config = load(recipe)
        assert not any("acdc" in source.folder.lower() for source in config.data.sources)
