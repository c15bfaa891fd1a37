"""Data sets as users bring them to Stage 2: layouts, patients, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from ssl_trainer.config import ConfigError, DataConfig, UniMatchConfig, parse
from ssl_trainer.data import cases
from ssl_trainer.data.cases import Case
from ssl_trainer.data.slices import read_slices
from ssl_trainer.evaluation.evaluate import evaluate
from ssl_trainer.models import weights
from ssl_trainer.training.trainer import Trainer
from support import picture
from trainer_support import small_config, write_case, write_dataset
from vessa_client import AnyArray, UInt8Array, files
from vessa_client.files import FileError
from vessa_common import layouts

CLASSES = ("disc", "bar")


def _config(root: Path, *labelled: str, **changes: object) -> DataConfig:
    config = DataConfig(root=root, classes=CLASSES, labelled=labelled, size=32)
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def _patients(found: tuple[Case, ...]) -> list[str]:
    return [case.patient for case in found]


def _volume(seed: int, depth: int = 3) -> tuple[UInt8Array, UInt8Array]:
    """Image and labels of a volume."""
    pairs = [picture(seed * 10 + z, (44, 48)) for z in range(depth)]
    return (
        np.stack([image for image, _ in pairs], axis=2),
        np.stack([labels for _, labels in pairs], axis=2),
    )


def _save(file: Path, pixels: AnyArray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(pixels, np.diag([1.4, 1.6, 8.0, 1.0])), file)


def test_numbered_cases_are_patients_and_not_one_patient(tmp_path: Path) -> None:
    """All of them once counted as patient "case", and the unlabelled ones were left out."""
    for index in range(6):
        write_case(tmp_path / "train", f"case_{index:03d}", index, labelled=index == 0)
    split = cases.find(_config(tmp_path))
    assert _patients(split.labelled) == ["case_000"]
    assert _patients(split.unlabelled) == [f"case_{index:03d}" for index in range(1, 6)]
    assert split.found == (
        "Data: patients for training: 6 (case_000, case_001, case_002, ...), files: 6, told apart "
        "by names and folders; layout plain"
    )


@pytest.mark.parametrize("label", ["image_gt", "label", "labels"])
def test_folders_of_patients(tmp_path: Path, label: str) -> None:
    for index, patient in enumerate(("p1", "p2", "p10")):
        image, labels = _volume(index)
        _save(tmp_path / "train" / patient / "image.nii.gz", image)
        if patient != "p2":
            _save(tmp_path / "train" / patient / f"{label}.nii.gz", labels)
    split = cases.find(_config(tmp_path, "p1"))
    assert _patients(split.labelled) == ["p1"]
    assert _patients(split.unlabelled) == ["p10", "p2"]
    every = cases.find(_config(tmp_path))
    slices = read_slices(every.labelled, 2, labelled=True, sample=3)
    # Files of the same name are told apart.
    assert [s.key for s in slices] == [f"{p}/image/{z}" for p in ("p1", "p10") for z in range(3)]
    assert {s.series for s in slices} == {"p1/image", "p10/image"}
    _, labels = _volume(2)
    np.testing.assert_array_equal(slices[5].labels, labels[..., 2])


def test_a_label_file_of_several_images_is_refused(tmp_path: Path) -> None:
    for name in ("t1", "t2", "label"):
        _save(tmp_path / "train" / "p1" / f"{name}.nii.gz", _volume(0)[1])
    with pytest.raises(ConfigError, match=r"label\.nii\.gz: not clear whose labels"):
        cases.find(_config(tmp_path))


def _decathlon(root: Path, *, channels: int, suffix: str) -> None:
    """Five cases, the last without labels; label values 2 and 7. A test set without labels."""
    for index in range(5):
        image, labels = _volume(index)
        values = np.array([0, 2, 7], np.uint8)[labels]
        several = np.stack([image, 255 - image], axis=3)[..., :channels]
        if suffix == "msd":
            _save(root / "imagesTr" / f"scan_{index}.nii.gz", several)
        else:
            for channel in range(channels):
                file = root / "imagesTr" / f"scan_{index}_{channel:04d}.nii.gz"
                _save(file, several[..., channel])
        if index < 4:
            _save(root / "labelsTr" / f"scan_{index}.nii.gz", values)
    _save(root / "imagesTs" / ("scan_9.nii.gz" if suffix == "msd" else "scan_9_0000.nii.gz"), image)
    about = {
        "labels": {"0": "background", "2": "disc", "7": "bar"},
        "modality": {str(c): f"m{c}" for c in range(channels)},
    }
    (root / "dataset.json").write_text(json.dumps(about))


@pytest.mark.parametrize("layout", ["nnunet", "msd"])
@pytest.mark.parametrize("channel", [0, 1])
def test_data_sets_of_nnu_net_and_of_the_decathlon(
    tmp_path: Path, layout: str, channel: int
) -> None:
    _decathlon(tmp_path, channels=2, suffix=layout)
    split = cases.find(_config(tmp_path, "scan_1", channel=channel))
    assert _patients(split.labelled) == ["scan_1"]
    assert _patients(split.unlabelled) == ["scan_0", "scan_2", "scan_3", "scan_4"]
    assert (split.val, split.test) == ((), ())
    assert f"layout {layout}, channel {channel} of 2 (data.channel)" in split.found
    image, labels = _volume(1)
    read = split.labelled[0].read()
    np.testing.assert_array_equal(read.pixels, 255 - image if channel else image)
    own = split.labelled[0].read_labels(read, 2)
    assert own is not None
    np.testing.assert_array_equal(own.pixels, labels)
    with pytest.raises((ConfigError, files.FileError), match="channel"):
        cases.find(_config(tmp_path, channel=3)).labelled[0].read()


def test_annotated_test_and_validation_cases_are_splits(tmp_path: Path) -> None:
    _decathlon(tmp_path, channels=1, suffix="nnunet")
    labels = np.array([0, 2, 7], np.uint8)[_volume(4)[1]]
    _save(tmp_path / "labelsTs" / "scan_9.nii.gz", labels)
    _save(tmp_path / "imagesVa" / "scan_8_0000.nii.gz", _volume(5)[0])
    assert _patients(cases.find(_config(tmp_path)).test) == ["scan_9"]
    assert cases.find(_config(tmp_path)).val == ()
    _save(tmp_path / "labelsVa" / "scan_8.nii.gz", labels)
    assert _patients(cases.find(_config(tmp_path)).val) == ["scan_8"]


def test_classes_must_be_those_of_the_data_set(tmp_path: Path) -> None:
    _decathlon(tmp_path, channels=1, suffix="msd")
    with pytest.raises(ConfigError, match=r"data\.classes: 1 names, .*: 2 disc, 7 bar"):
        cases.find(_config(tmp_path, classes=("disc",)))


def _hdf5(file: Path, seed: int, depth: int | None, *, key: str = "label") -> None:
    """As SSL4MIS writes them: slices along the first axis."""
    image, labels = (np.moveaxis(a, 2, 0) for a in _volume(seed, depth or 1))
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as stream:
        stream["image"] = (image / 255.0).astype(np.float32)[slice(None) if depth else 0]
        stream[key] = labels[slice(None) if depth else 0]


@pytest.mark.parametrize("kind", ["volumes", "slices"])
def test_data_sets_of_ssl4mis(tmp_path: Path, kind: str) -> None:
    names = []
    for patient in (1, 2):
        for frame in (1, 2):
            name = f"patient{patient:03d}_frame{frame:02d}"
            if kind == "volumes":
                _hdf5(tmp_path / "data" / f"{name}.h5", patient, 4)
                names.append(name)
            else:
                for index in range(3):
                    names.append(f"{name}_slice_{index}")
                    _hdf5(tmp_path / "data" / "slices" / f"{names[-1]}.h5", index, None)
    listed = "train.list" if kind == "volumes" else "train_slices.list"
    (tmp_path / listed).write_text("\n".join(names) + "\n\n")
    _hdf5(tmp_path / "data" / "patient003_frame01.h5", 3, 4)
    (tmp_path / "val.list").write_text("patient003_frame01\n")
    split = cases.find(_config(tmp_path, "patient001"))
    count = 2 if kind == "volumes" else 6
    assert _patients(split.labelled) == ["patient001"] * count
    assert _patients(split.unlabelled) == ["patient002"] * count
    assert (_patients(split.val), split.test) == (["patient003"], ())
    assert "patients for training: 2" in split.found
    assert "layout ssl4mis" in split.found
    slices = read_slices(split.labelled, 2, labelled=True)
    assert len(slices) == (8 if kind == "volumes" else 6)
    assert {s.image.shape for s in slices} == {(44, 48)}
    assert all(s.labels is not None and s.labels.shape == (44, 48) for s in slices)
    truth = np.moveaxis(_volume(3, 4)[1], 2, 0)
    scores = evaluate(lambda image: list(truth), split.val, CLASSES)
    assert [s.name for s in scores] == ["patient003_frame01"]
    assert scores[0].dice == (1.0, 1.0)


def test_left_atria_lie_in_folders_and_are_cut_along_their_last_axis(tmp_path: Path) -> None:
    for name in ("06SR5RBREL16DQ6M8LWS", "0RZDK210BSMWAA6467LU"):
        file = tmp_path / "2018LA_Seg_Training Set" / name / "mri_norm2.h5"
        file.parent.mkdir(parents=True)
        image, labels = _volume(0, 40)
        with h5py.File(file, "w") as stream:
            stream["image"], stream["label"] = image.astype(np.float32), labels
    (tmp_path / "train.list").write_text("06SR5RBREL16DQ6M8LWS\n0RZDK210BSMWAA6467LU\n")
    split = cases.find(_config(tmp_path, "0RZDK210BSMWAA6467LU"))
    assert _patients(split.unlabelled) == ["06SR5RBREL16DQ6M8LWS"]
    slices = read_slices(split.labelled, 2, labelled=True)
    assert len(slices) == 40
    assert slices[7].key == "0RZDK210BSMWAA6467LU/7"


def test_all_volumes_in_hdf5_are_sliced_alike(tmp_path: Path) -> None:
    """Two of the labelled ones are flat along the first axis, the other one along its last."""
    shapes = {"patient001": (3, 30, 20), "patient002": (4, 30, 20), "patient003": (20, 30, 4)}
    (tmp_path / "train.list").write_text("".join(f"{name}_frame01\n" for name in shapes))
    (tmp_path / "data").mkdir()
    for name, shape in shapes.items():
        labels = np.zeros(shape, np.uint8)
        labels[1, 1] = 1
        with h5py.File(tmp_path / "data" / f"{name}_frame01.h5", "w") as stream:
            stream["image"], stream["label"] = labels.astype(np.float32), labels
    config = DataConfig(root=tmp_path, classes=("disc",))
    split = cases.find(config)
    chosen = cases.sliced(config, split)
    assert chosen.axis == 0
    for axis in (0, 1, 2):
        for case in split.read_as(dataclasses.replace(config, axis=axis)).labelled:
            image = case.read()
            truth = case.read_labels(image, 1)
            assert truth is not None
            assert image.depth == truth.depth == shapes[case.patient][axis]
            for index in range(image.depth):
                assert np.array_equal(image.slice(index), truth.slice(index))
    slices = read_slices(split.read_as(chosen).labelled, 1, labelled=True)
    assert len(slices) == 3 + 4 + 20


def test_hdf5_that_cannot_be_read_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.list").write_text("patient001_frame01\n")
    with pytest.raises(ConfigError, match=r"train\.list names 'patient001_frame01'; no file"):
        cases.find(_config(tmp_path))
    file = tmp_path / "data" / "patient001_frame01.h5"
    _hdf5(file, 0, 2, key="mask")
    with pytest.raises(ConfigError, match="no label file for training"):
        cases.find(_config(tmp_path))
    file.write_bytes(b"broken")
    with pytest.raises(files.FileError, match=r"patient001_frame01\.h5: cannot be read"):
        cases.find(_config(tmp_path))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConfigError, match=r"pip install 'ssl-trainer\[h5\]'"):
        cases.find(_config(tmp_path))


def test_a_folder_of_no_layout_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.root: no folder .*train or .*imagesTr"):
        cases.find(_config(tmp_path))


def test_a_pattern_sees_the_path_below_the_split(tmp_path: Path) -> None:
    for patient in ("a", "b"):
        write_case(tmp_path / "train" / patient, "1_heart", 0, labelled=patient == "a")
    split = cases.find(_config(tmp_path, patient_pattern="^([^/]+)/"))
    assert (_patients(split.labelled), _patients(split.unlabelled)) == (["a"], ["b"])
    assert "told apart by data.patient_pattern" in split.found
    with pytest.raises(ConfigError, match=r"finds no patient in 'a/1_heart\.nii\.gz'"):
        cases.find(_config(tmp_path, patient_pattern="^([^/]+)/([0-9]+)$"))


@pytest.mark.parametrize(
    "files_of",
    [
        # One name in the folders of two patients, or of two data sets.
        ("train/siteA/case1", "train/siteB/case1", "val/x9"),
        # Two names in a folder that may be a patient's, on both sides of a split.
        ("train/p1/heart5", "train/p2/heart7", "val/p1/heart6"),
        # Two scans of one patient, or two patients.
        ("train/012a", "train/013a", "val/012b"),
    ],
)
def test_files_that_may_be_of_one_patient_on_two_sides_are_refused(
    tmp_path: Path, files_of: tuple[str, ...]
) -> None:
    for file in files_of:
        folder, _, name = file.rpartition("/")
        write_case(tmp_path / folder, name, 0, labelled=True)
    with pytest.raises(ConfigError, match=r"data\.patient_pattern: .* one patient or"):
        cases.find(_config(tmp_path))
    # A pattern decides.
    cases.find(_config(tmp_path, patient_pattern=r"^(.+)\.nii"))


def test_scans_of_a_patient_on_two_sides_are_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    write_case(tmp_path / "test", "p1_arterial", 8, labelled=True)
    with pytest.raises(ConfigError, match="patient 'p1' of test is in train too"):
        cases.find(_config(tmp_path))


def test_scans_of_a_patient_are_together_whatever_lies_between(tmp_path: Path) -> None:
    """Between p1.png and p1_frame2.png lies p10.png."""
    for name in ("p1", "p10", "p1_frame2"):
        image, labels = picture(0)
        (tmp_path / "train").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "train" / f"{name}.png")
        Image.fromarray(labels).save(tmp_path / "train" / f"{name}_gt.png")
    assert _patients(cases.find(_config(tmp_path)).labelled) == ["p1", "p1", "p10"]


def _trainer(root: Path, *, weight: float, server: str | None) -> Trainer:
    config = small_config(root, server=server)
    data = dataclasses.replace(config.data, labelled=())
    config = dataclasses.replace(config, data=data, unimatch=UniMatchConfig(weight=weight))
    return Trainer(config, root / "run")


def test_a_run_without_unlabelled_images_is_refused_unless_it_asks_for_that(
    tmp_path: Path,
) -> None:
    for index in range(3):
        write_case(tmp_path / "train", f"case_{index}", index, labelled=True)
    with pytest.raises(ConfigError, match=r"data\.labelled: every patient .*unimatch\.weight to 0"):
        _trainer(tmp_path, weight=1.0, server=None)
    with pytest.raises(ConfigError, match=r"patients for training: 3 \(case_0, case_1, case_2\)"):
        _trainer(tmp_path, weight=0.0, server="localhost:1")
    assert _trainer(tmp_path, weight=0.0, server=None).unlabelled_sampler is None
    write_case(tmp_path / "train", "case_3", 3, labelled=False)
    assert _trainer(tmp_path, weight=1.0, server=None).unlabelled_sampler is not None


def test_configurations_of_data_are_checked() -> None:
    for changes, words in (
        ({"patient_pattern": "("}, "patient_pattern"),
        ({"patient_pattern": "p[0-9]+"}, "expected a group"),
        ({"channel": -1}, "channel: -1, expected 0 or more"),
        ({"classes": ("a", "a")}, "classes: a, a: expected names that differ"),
        ({"classes": (" ",)}, "expected names that differ"),
    ):
        with pytest.raises(ValueError, match=words):
            _config(Path(), **changes)


def test_images_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for name in ("p1.png", "p2.png", "p2.jpg"):
        Image.fromarray(picture(0)[0]).save(tmp_path / "train" / name)
    with pytest.raises(ConfigError, match=r"p2\.(png|jpg) and .*p2\.(png|jpg) have one name"):
        cases.find(_config(tmp_path))


def test_label_values_that_the_data_set_does_not_name_are_refused(tmp_path: Path) -> None:
    image, labels = picture(0)
    for folder, name, pixels in (("images", "p1_0000", image), ("labels", "p1", labels * 2 + 1)):
        (tmp_path / f"{folder}Tr").mkdir()
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{folder}Tr" / f"{name}.png")
    about = {"labels": {"background": 0, "disc": 3, "bar": 5}, "channel_names": {"0": "MRI"}}
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    case = cases.find(_config(tmp_path)).labelled[0]
    with pytest.raises(FileError, match=r"label 1, expected 0 and those of dataset\.json, 3, 5"):
        case.read_labels(case.read(), 2)
    about["labels"] = {"background": 0, "disc": 300, "bar": 5}
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(ConfigError, match=r"label values 5, 300, expected 1\.\.255"):
        cases.find(_config(tmp_path))


def test_of_each_case_one_channel_is_predicted_and_no_label_file() -> None:
    names = ["a_0000.nii.gz", "a_0001.nii.gz", "b_0000.png", "c.png", "label.nii.gz", "d_2024.png"]
    images = [Path("x") / name for name in names]
    chosen = [file.name for file in layouts.to_predict(images, 1)]
    assert chosen == ["a_0001.nii.gz", "b_0000.png", "c.png", "d_2024.png"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", -1),
        ("learning_rate", float("nan")),
        ("weight_decay", -1),
        ("poly_power", -3),
        ("seed", -1),
        ("cps.weight", -0.1),
        ("unimatch.weight", float("nan")),
        ("assistant.weight", float("inf")),
        ("augmentation.rotation_degrees", -5),
        ("augmentation.zoom_max", float("inf")),
        ("labelled_augmentation.elastic", float("nan")),
    ],
)
def test_numbers_without_sense_are_refused_by_their_key(key: str, value: float) -> None:
    section, _, name = key.rpartition(".")
    own: dict[str, object] = {name: value}
    content = {"data": {"root": "x", "classes": ["a"]}} | ({section: own} if section else own)
    with pytest.raises(ConfigError, match=rf"{name}: .*expected (at least 0|a number above 0)"):
        parse(content)


def test_weights_that_find_no_room_name_their_file(tmp_path: Path) -> None:
    file, tensors = tmp_path / "last.safetensors", {"a": torch.zeros(100_000)}
    weights.write(file, tensors, {"step": "1"})
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, allowed[1]))
    try:
        with pytest.raises(OSError, match=r"last\.safetensors: cannot be written"):
            weights.write(file, tensors, {"step": "2"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert weights.read(file)[1] == {"step": "1"}
    assert [f.name for f in tmp_path.iterdir()] == [file.name]
