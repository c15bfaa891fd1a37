"""Data sets of users: layouts, label names, windows, spacing, and errors that say what is wrong."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from vessa_common import layouts
from vessa_common.layouts import DataError
from vessa_server.training import pack as packs
from vessa_server.training.config import ConfigError, SourceConfig, TrainingConfig, load
from vessa_server.training.planning import Planner, tasks
from vessa_server.training.sources import read
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
    source, items = read(config, tmp_path)
    assert [t.name for t in source.texts] == ["liver", "spleen"]
    assert len(items) == 3 * 6
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
        _, items = read(config, tmp_path)
        assert {i.image.shape for i in items} == {shape}
        assert {i.labels.shape for i in items} == {shape}
        assert {i.axis for i in items} == {axis}
    flat = SourceConfig(folder="set", layout="msd", axes=(0,), spacing=(1, 1, 1))
    assert read(flat, tmp_path)[1][0].image.shape == (24, 6)


def test_volumes_are_cut_beyond_their_ends_and_as_often_as_asked(tmp_path: Path) -> None:
    _msd(tmp_path / "set")
    _, every = read(SourceConfig(folder="set", layout="msd", axes=(0,)), tmp_path)
    of_one = [i for i in every if i.subject == "case_0"]
    # Annotated are rows 4 to 17 of 20; the ends are shown, too, where nothing is.
    assert next(i.position for i in of_one if i.labels.any()) == 0.0
    assert next(i.position for i in of_one if not i.labels.any()) < 0
    few = SourceConfig(folder="set", layout="msd", axes=(0,), slices_per_volume=5)
    assert len(read(few, tmp_path)[1]) == 3 * 5


def test_pictures_lie_beside_their_labels(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    for index in range(3):
        label = np.zeros((20, 30), np.uint8)
        label[5:12, 4:20] = 255
        Image.fromarray(label // 2).save(tmp_path / "p" / f"{index}.png")
        Image.fromarray(label).save(tmp_path / "p" / f"{index}_gt.png")
    _, items = read(SourceConfig(folder="p", classes=TEXTS, binary=True), tmp_path)
    assert [i.subject for i in items] == ["0", "1", "2"]
    assert all(i.image.shape == i.labels.shape == (20, 30) for i in items)
    assert all(set(np.unique(i.labels)) == {0, 1} for i in items)


def _numbered(folder: Path, names: list[str]) -> None:
    folder.mkdir()
    for index, name in enumerate(names):
        array = np.full((8, 8), index, np.uint8)
        Image.fromarray(array).save(folder / f"{name}.png")
        Image.fromarray(np.ones_like(array)).save(folder / f"{name}_gt.png")


@pytest.mark.parametrize(
    ("count", "held"), [(23, {"09", "19"}), (5, {"04"}), (2, set())], ids=["many", "few", "two"]
)
def test_some_subjects_are_held_out_but_never_the_only_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, count: int, held: set[str]
) -> None:
    _numbered(tmp_path / "p", [f"{index:02d}" for index in range(count)])
    _, items = read(SourceConfig(folder="p", classes=TEXTS), tmp_path)
    assert {i.subject for i in items if i.held_out} == held
    assert ("p: 2 subjects, none of them held out" in caplog.text) == (not held)


@pytest.mark.parametrize("repeats", [1, 2])
def test_no_patient_is_on_both_sides_however_many_there_are(tmp_path: Path, repeats: int) -> None:
    """Subjects of one to four images each: what is drawn for training, and for validation."""
    rng = RNG(0)
    for count in (1, 2, 3, 4, 9, 10, 11, 19, 20, 21):
        folder = tmp_path / str(count)
        files_of = {f"p{i:02d}": int(rng.integers(1, 5)) for i in range(count)}
        _numbered(folder, [f"{p}_slice_{k}" for p, n in files_of.items() for k in range(n)])
        source, items = read(SourceConfig(folder=folder.name, classes=TEXTS), tmp_path)
        sides = {p: {i.held_out for i in items if i.subject == p} for p in files_of}
        assert sum(len(side) for side in sides.values()) == count
        held = [p for p, side in sides.items() if side == {True}]
        assert len(held) == (0 if count < 3 else max(1, count // 10))
        pack = packs.build([(source, items)], 32)
        assert len(np.unique(pack.subject_R)) == count
        config = TrainingConfig(steps=1, synthetic_share=0.0, repeats=repeats)
        drawn = {}
        for held_out in (False, True):
            if tasks(pack, config, held_out=held_out):
                planner = Planner(pack, config, held_out=held_out)
                rows = np.concatenate([planner.plan(n).rows_N.numpy() for n in range(8)])
                drawn[held_out] = set(pack.subject_R[rows])
                assert set(pack.held_out_R[rows]) == {held_out}
        assert not drawn.get(True, set()) & drawn.get(False, set())


def test_a_pack_with_a_subject_on_both_sides_is_refused(tmp_path: Path) -> None:
    _numbered(tmp_path / "p", ["a1_0", "a1_1", "a2_0"])
    source, items = read(SourceConfig(folder="p", classes=TEXTS), tmp_path)
    with pytest.raises(DataError, match="subject 0 is held out and trained on"):
        packs.build([(source, [dataclasses.replace(items[0], held_out=True), *items[1:]])], 32)
    pack = packs.build([(source, items)], 32)
    pack.held_out_R[0] = True
    packs.write(pack, tmp_path / "old.pack")
    with pytest.raises(DataError, match="subject 0 is held out and trained on; pack again"):
        packs.read(tmp_path / "old.pack")


def test_slices_of_one_patient_stay_on_one_side(tmp_path: Path) -> None:
    _numbered(tmp_path / "p", [f"{case}_{s}" for case in "abcdefghij" for s in range(3)])
    config = SourceConfig(folder="p", classes=TEXTS, subject_pattern="([a-z])_")
    _, items = read(config, tmp_path)
    assert [i.subject for i in items if i.held_out] == ["j"] * 3
    _numbered(tmp_path / "q", [f"p{case}_{s}" for case in range(10, 20) for s in range(3)])
    _, items = read(SourceConfig(folder="q", classes=TEXTS), tmp_path)
    assert [i.subject for i in items if i.held_out] == ["p19"] * 3
    wrong = SourceConfig(folder="p", classes=TEXTS, subject_pattern="[0-9]+")
    with pytest.raises(DataError, match=r"subject_pattern '\[0-9\]\+' does not match 'a_0'"):
        read(wrong, tmp_path)


def _with_pictures(root: Path, name: str) -> Path:
    _numbered(root / name, ["a"])
    return root


def test_errors_name_the_folder_and_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder .*nothing"):
        read(SourceConfig(folder="nothing", classes=TEXTS), tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no labelled images of layout 'plain'"):
        read(SourceConfig(folder="empty", classes=TEXTS), tmp_path)
    root = _nnunet(tmp_path / "set")
    with pytest.raises(DataError, match="case_0_0007"):
        read(SourceConfig(folder="set", layout="nnunet", channel=7), tmp_path)
    (root / "dataset.json").write_text(json.dumps({"labels": {"whole": [1, 2]}}))
    with pytest.raises(DataError, match="no regions"):
        read(SourceConfig(folder="set", layout="nnunet"), tmp_path)
    (root / "dataset.json").unlink()
    with pytest.raises(DataError, match="set `classes`"):
        read(SourceConfig(folder="set", layout="nnunet"), tmp_path)
    (root / "imagesTr" / "case_0_0000.nii.gz").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"case_0_0000\.nii\.gz cannot be read"):
        read(SourceConfig(folder="set", layout="nnunet", classes=TEXTS), tmp_path)
    nine = tuple(ClassText(name=str(n)) for n in range(9))
    with pytest.raises(DataError, match="9 classes, expected at most 8"):
        read(SourceConfig(folder="empty_too", classes=nine), _with_pictures(tmp_path, "empty_too"))


def _one(root: Path, image: np.ndarray, labels: np.ndarray, turned: float = 1.0) -> SourceConfig:
    """A volume whose labels lie along the first axis as ``turned`` says."""
    folder = root / "one"
    folder.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(image, np.eye(4)), folder / "a.nii.gz")
    place = np.diag([turned, 1.0, 1.0, 1.0])
    nib.save(nib.Nifti1Image(labels, place), folder / "a_gt.nii.gz")
    return SourceConfig(folder="one", classes=TEXTS)


def test_labels_that_lie_elsewhere_or_are_none_are_refused(tmp_path: Path) -> None:
    image = RNG(0).normal(0, 1, (8, 9, 4)).astype(np.float32)
    labels = np.zeros((8, 9, 4), np.float32)
    labels[2:5, 2:5] = 1
    read(_one(tmp_path, image, labels), tmp_path)
    with pytest.raises(DataError, match=r"a_gt\.nii\.gz lies elsewhere than .*resample"):
        read(_one(tmp_path, image, labels, turned=-1.0), tmp_path)
    with pytest.raises(DataError, match="no whole numbers"):
        read(_one(tmp_path, image, labels * 0.6), tmp_path)
    with pytest.raises(DataError, match=r"labels 0 to 255, expected 0 to 1; .* `binary: true`"):
        read(_one(tmp_path, image, labels * 255), tmp_path)
    with pytest.raises(DataError, match="no image shows any of its 1 classes"):
        read(_one(tmp_path, image, labels * 0), tmp_path)
    with pytest.raises(DataError, match="expected labels of two or three axes"):
        read(_one(tmp_path, image, labels[..., None, None]), tmp_path)
    config = dataclasses.replace(_one(tmp_path, image[..., None], labels), channel=1)
    with pytest.raises(DataError, match="has 1 channels, `channel` is 1"):
        read(config, tmp_path)


def test_labels_of_rounded_numbers_are_labels(tmp_path: Path) -> None:
    image = RNG(0).normal(0, 1, (8, 9, 4)).astype(np.float32)
    labels = np.zeros((8, 9, 4), np.float32)
    labels[2:5, 2:5] = 0.9999
    _, items = read(_one(tmp_path, image, labels), tmp_path)
    assert {int(i.labels.max()) for i in items} == {1}


def test_a_voxel_without_a_number_is_black_and_leaves_the_others(tmp_path: Path) -> None:
    image = RNG(0).uniform(0, 1, (8, 9, 4)).astype(np.float32)
    labels = np.ones((8, 9, 4), np.uint8)
    _, whole = read(_one(tmp_path, image, labels), tmp_path)
    image[1, 2, 0], image[3, 3, 0] = np.nan, np.inf
    _, holed = read(_one(tmp_path, image, labels), tmp_path)
    assert holed[0].image[1, 2] == holed[0].image[3, 3] == 0
    difference = np.abs(holed[0].image.astype(int) - whole[0].image)
    assert np.sort(difference.ravel())[-3] <= 2
    with pytest.raises(DataError, match="no voxel with a number"):
        read(_one(tmp_path, np.full_like(image, np.nan), labels), tmp_path)


def test_configurations_are_checked_key_by_key(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    for text, words in (
        ("training: {steps: 0}", "steps: 0, minutes: 0.0, expected one of them above 0"),
        ("training: {steps: 1, view_shares: [1, 1, 1]}", "expected a sum of 1"),
        ("training: {steps: 3}\ndata: {sources: [{folder: a, subject_pattern: '('}]}", "pattern"),
        ("training: {steps: 3, speed: 9}", "training.speed"),
        ("training: {steps: 3}\ndata: {sources: [{folder: a, axes: [3]}]}", "axes"),
        ("training: {steps: 3}\ndata: {sources: [{folder: a, layout: odd}]}", "layout"),
        ("training: {steps: 3, decay_share: 3}", r"decay_share: 3.0, expected in \[0, 1\]"),
        ("training: {steps: 3, validate_every: 0}", "validate_every: 0, expected at least 1"),
        ("training: {steps: 3, learning_rate: -1}", "learning_rate: -1.0"),
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
