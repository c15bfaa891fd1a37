"""The trainer's data: configuration, splits, frames, samplers."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from ssl_trainer import config as configuration
from ssl_trainer.config import AugmentationConfig, ConfigError, RichAugmentationConfig
from ssl_trainer.data import batches, cases, frame
from ssl_trainer.data.slices import Slice, read_slices
from support import ROOT
from trainer_support import small_config, stored, write_case, write_dataset
from vessa_client import files, pictures


def test_labelled_and_unlabelled_share_no_patient(tmp_path: Path) -> None:
    split = cases.find(small_config(write_dataset(tmp_path)).data)
    assert [c.patient for c in split.labelled] == ["p0"]
    assert [c.patient for c in split.unlabelled] == ["p1", "p2"]
    assert [c.patient for c in split.val] == ["p3"]


def test_labels_of_unlabelled_patients_are_not_used(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    write_case(tmp_path / "train", "p1_frame02", 8, labelled=True)
    split = cases.find(small_config(tmp_path).data)
    assert {c.patient for c in split.labelled} == {"p0"}
    assert len(split.unlabelled) == 3


def test_a_patient_in_two_splits_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    write_case(tmp_path / "val", "p1_frame02", 8, labelled=True)
    with pytest.raises(ConfigError, match="p1"):
        cases.find(small_config(tmp_path).data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": {"labelled": ["p9"]}}, "no patient 'p9'"),
        ({"data": {"root": "nowhere"}}, "no folder"),
        ({"data": {"size": 33}}, "multiple of 16"),
        ({"data": {"sise": 32}}, "sise"),
        ({"data": {"window": [240, -160]}}, "lower one first"),
        ({"data": {"window": [0, float("inf")]}}, "window"),
        ({"data": {"axis": "upwards"}}, "data.axis.*sagittal, coronal, axial"),
        ({"data": {"axis": 3}}, "axis: .*3, expected"),
        ({"data": {"patient_pattern": "x(y)"}}, "finds no patient"),
        ({"steps": 0}, "at least 1"),
        ({"steps": "many"}, "steps"),
        ({"unimatch": {"ema_decay": 1.5}}, "ema_decay"),
        ({"augmentation": {"zoom_min": 2}}, "zoom_min"),
        ({"assistant": {"feedback_start": 2}}, "feedback_start.*fraction"),
        ({"assistant": {"teacher_share": -1}}, "teacher_share.*fraction"),
        ({"assistant": {"weight": -1}}, "weight: -1.0, expected at least 0"),
        ({"assistant": {"ahead": 0}}, "ahead: 0, expected at least 1"),
        ({"assistant": {"timeout_seconds": 0}}, "timeout_seconds: 0.0, expected above 0"),
        ({"assistant": {"timeout_seconds": float("nan")}}, "timeout_seconds: nan"),
        ({"assistant": {"wait_seconds": -1}}, "wait_seconds: -1.0, expected at least 0"),
        ({"assistant": {"retry_seconds": -1}}, "retry_seconds: -1.0, expected at least 0"),
        ({"checkpoint_every": 0}, "checkpoint_every: 0, expected at least 1"),
        ({"unimatch": {"cutmix_probability": 1.5}}, "cutmix_probability: 1.5.*fraction"),
        ({"augmentation": {"quarter_turns": -0.5}}, "quarter_turns: -0.5.*fraction"),
        ({"bcp": {"pretraining": 2}}, "pretraining: 2.0.*fraction"),
        ({"student": {"channels": [4, 4, 8, 0, 8, 4]}}, "channels: .*0.*expected at least 1"),
        ({"student": {"kind": "dinov2-dpt", "num_layers": 0}}, "num_layers: 0"),
        ({"student": {"kind": "dinov2-dpt", "num_heads": 0}}, "num_heads: 0"),
        ({"student": {"kind": "dinov2-dpt", "fusion_channels": 0}}, "fusion_channels: 0"),
    ],
)
def test_wrong_configurations_name_the_key(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    content = configuration.to_dict(small_config(write_dataset(tmp_path / "d")))
    for key, value in change.items():
        if isinstance(value, dict) and "kind" not in value:
            content[key] = {**content[key], **value}
        else:
            content[key] = value
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=words):
        cases.find(configuration.load(file).data)


def test_configurations_come_back_and_can_be_overridden(tmp_path: Path) -> None:
    config = small_config(write_dataset(tmp_path))
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(configuration.to_dict(config)))
    assert configuration.load(file) == config
    changed = configuration.load(file, ["steps=9", "assistant.server=host:1"])
    assert changed.steps == 9
    assert changed.assistant.server == "host:1"
    with pytest.raises(ConfigError, match="expected key"):
        configuration.load(file, ["steps"])
    with pytest.raises(ConfigError, match="No such file"):
        configuration.load(tmp_path / "missing.yaml")


def test_values_that_are_no_yaml_and_sections_without_keys(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("data: {root: ., classes: [disc]}\nassistant:\nlabelled_augmentation: null\n")
    with pytest.raises(ConfigError, match=r"--set 'seed=\[': '\[' is not YAML"):
        configuration.load(file, ["seed=["])
    changes = ["assistant.server=host:1", "labelled_augmentation.noise=0"]
    changed = configuration.load(file, changes)
    assert changed.assistant.server == "host:1"
    assert changed.labelled_augmentation is not None
    assert changed.labelled_augmentation.noise == 0
    with pytest.raises(ConfigError, match="seed has no keys below it"):
        configuration.load(file, ["seed=1", "seed.own=1"])


def test_relative_paths_are_relative_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "study" / "c.yaml"
    file.parent.mkdir()
    student = {"kind": "dinov2-dpt", "pretrained": "../dinov2"}
    content = {
        "data": {"root": "data", "classes": ["disc"], "size": 28},
        "student": student,
        "assistant": {"root_certificates": "ca.pem"},
    }
    file.write_text(yaml.safe_dump(content))
    monkeypatch.chdir(file.parent.parent)
    found = configuration.load(Path("study/c.yaml"))
    assert found.data.root == tmp_path / "study" / "data"
    assert isinstance(found.student, configuration.DptStudentConfig)
    assert found.student.pretrained == tmp_path / "dinov2"
    assert found.assistant.root_certificates == tmp_path / "study" / "ca.pem"


def test_the_example_configuration_is_valid() -> None:
    split = cases.find(configuration.load(ROOT / "examples" / "acdc.yaml").data)
    assert {c.patient for c in split.labelled} == {"patient099"}
    assert len(split.unlabelled) == 12
    assert all(c.labels for c in split.val)


@settings(max_examples=40)
@given(st.integers(20, 90), st.integers(20, 90))
def test_the_canonical_frame_can_be_left_again(height: int, width: int) -> None:
    rows, columns = np.mgrid[0:height, 0:width]
    image = torch.from_numpy((rows / height + 2 * columns / width).astype(np.float32))[None]
    canvas = frame.resample(image, frame.theta((height, width)), 128, mode="bilinear")
    back = frame.restore(canvas, (height, width))
    inner = (slice(None), slice(3, -3), slice(3, -3))
    assert float((back[inner] - image[inner]).abs().max()) < 0.05


@settings(max_examples=40)
@given(st.integers(30, 90), st.integers(30, 90), st.floats(-1.5, 1.5), st.integers(0, 1))
def test_a_turned_view_can_be_left_again(
    height: int, width: int, angle: float, mirror: int
) -> None:
    transform = frame.WeakTransform(angle=angle, mirror_x=bool(mirror))
    rows, columns = np.mgrid[0:height, 0:width]
    image = torch.from_numpy((1 + rows / height + 2 * columns / width).astype(np.float32))[None]
    matrix = frame.theta((height, width), transform=transform)
    view = frame.resample(image, matrix, 256, mode="bilinear")
    back = frame.restore(view, (height, width), transform=transform)[0].numpy()
    # Distance of each pixel from the middle along the sides of the view, half of its side being 1.
    y, x = (rows + 0.5 - height / 2), (columns + 0.5 - width / 2)
    sides = np.abs([np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x])
    far = sides.max(axis=0) / (max(height, width) / 2)
    assert not back[far > 1.001].any()
    inner = np.zeros((height, width), bool)
    inner[2:-2, 2:-2] = True
    seen = inner & (far < 0.95)
    assert np.abs(back - image[0].numpy())[seen].max() < 0.1


TURNED = AugmentationConfig(rotation_degrees=180, mirror=True, zoom_min=0.6)


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_a_view_is_the_same_map_for_image_and_labels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.zeros((50, 40), np.uint8)
    labels[12:30, 10:28] = 1
    matrix = frame.theta(labels.shape, transform=frame.WeakTransform.draw(rng, TURNED))
    image = torch.from_numpy(labels.astype(np.float32))[None]
    smooth = frame.resample(image, matrix, 64, mode="bilinear")[0]
    hard = frame.resample(image, matrix, 64, mode="nearest")[0]
    border = torch.from_numpy(
        ndimage.binary_dilation((smooth > 0.01).numpy() & (smooth < 0.99).numpy(), iterations=1)
    )
    assert torch.equal(hard[~border] > 0.5, smooth[~border] > 0.5)


def test_transforms_do_what_they_are_called() -> None:
    image = torch.zeros(1, 32, 32)
    image[0, 4:8, 20:28] = 1

    def seen(transform: frame.WeakTransform) -> torch.Tensor:
        matrix = frame.theta((32, 32), transform=transform)
        return frame.resample(image, matrix, 32, mode="nearest")

    assert torch.equal(seen(frame.WeakTransform(mirror_x=True)), image.flip(2))
    assert torch.equal(seen(frame.WeakTransform(mirror_y=True)), image.flip(1))
    zoomed = seen(frame.WeakTransform(zoom=0.5))
    assert float(zoomed.sum()) == pytest.approx(float(image.sum()) / 4, rel=0.3)


@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 50))
def test_every_slice_comes_once_in_an_epoch(count: int, batch: int, seed: int) -> None:
    sampler = batches.SliceSampler(count, batch, seed)
    steps = -(-3 * count // batch)
    seen = [index for step in range(steps) for index in sampler.indices(step)]
    for epoch in range(3):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))
    again = batches.SliceSampler(count, batch, seed)
    assert again.indices(1) == sampler.indices(1)


def test_labels_of_another_size_are_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    write_case(tmp_path / "other", "p0_frame01", 0, labelled=True, depth=5)
    (tmp_path / "other" / "p0_frame01_gt.nii.gz").replace(
        tmp_path / "train" / "p0_frame01_gt.nii.gz"
    )
    split = cases.find(small_config(tmp_path).data)
    with pytest.raises(files.FileError, match="expected the image's"):
        read_slices(split.labelled, 2, labelled=True)


def test_volumes_of_a_patient_with_the_same_geometry_count_as_one(tmp_path: Path) -> None:
    moved = np.array([[1.0, 0, 0, 5], [0, 1, 0, 0], [0, 0, 8, 0], [0, 0, 0, 1]])
    shapes = {"p1_frame01": (9, 8, 4), "p1_frame02": (9, 8, 4), "p1_long": (9, 8, 5)}
    places = {**dict.fromkeys(shapes, np.eye(4)), "p1_other": moved, "p2_frame01": np.eye(4)}
    folder = tmp_path / "train"
    folder.mkdir()
    rng = np.random.default_rng(0)
    found = []
    for name, affine in places.items():
        pixels = rng.integers(0, 200, shapes.get(name, (9, 8, 4))).astype(np.int16)
        nib.save(nib.Nifti1Image(pixels, affine), folder / f"{name}.nii.gz")
        found.append(cases.Case(folder / f"{name}.nii.gz", None, name.partition("_")[0]))
    slices = read_slices(tuple(found), 1, labelled=False, sample=4)
    assert [s.key for s in slices] == [
        f"{name}/{z}" for name in places for z in range(shapes.get(name, (9, 8, 4))[2])
    ]
    of = {s.key.partition("/")[0]: s for s in slices}
    assert {name: s.series for name, s in of.items()} == {
        "p1_frame01": "p1_frame01",
        "p1_frame02": "p1_frame01",
        "p1_long": "p1_long",
        "p1_other": "p1_other",
        "p2_frame01": "p2_frame01",
    }
    film = {
        s.key.partition("/")[0]
        for s in slices
        for v in of["p1_frame02"].volume
        if np.array_equal(s.image, v)
    }
    assert film == {"p1_frame01", "p1_frame02"}
    assert len(of["p1_frame02"].volume) == len(of["p1_long"].volume) == 4


def test_more_labels_than_classes_are_refused(tmp_path: Path) -> None:
    split = cases.find(small_config(write_dataset(tmp_path)).data)
    with pytest.raises(files.FileError, match=r"label 2, expected 0\.\.1"):
        read_slices(split.labelled, 1, labelled=True)


def _varied(
    image: np.ndarray, labels: np.ndarray, how: RichAugmentationConfig, seed: int
) -> batches.LabelledBatch:
    item = Slice("", image, labels, "", windowed=True)
    config = replace(small_config(Path()), labelled_augmentation=how)
    config = replace(config, data=replace(config.data, size=64))
    store = stored([item], 64, labelled=True)
    return batches.labelled_batch(store, [0], config, np.random.default_rng(seed))


def test_rich_augmentation_moves_image_and_labels_alike() -> None:
    labels = np.zeros((60, 60), np.uint8)
    labels[20:40, 25:45] = 1
    how = RichAugmentationConfig(structure_shift=0.0, gamma=0.0, bias=0.0, noise=0.0)
    for seed in range(8):
        found = _varied(255 * labels, labels, how, seed)
        bright = found.image_B1HW > (found.image_B1HW.min() + found.image_B1HW.max()) / 2
        differing = int((bright[:, 0] != (found.labels_BHW > 0)).sum())
        assert differing < 0.1 * int(found.labels_BHW.sum()), seed
    again = _varied(255 * labels, labels, how, 7)
    assert torch.equal(again.image_B1HW, found.image_B1HW)


def test_rich_augmentation_changes_each_structure_on_its_own() -> None:
    labels = np.zeros((60, 60), np.uint8)
    labels[10:25], labels[35:50] = 1, 2
    how = RichAugmentationConfig(elastic=0.0, gamma=0.0, bias=0.0, noise=0.0)
    flat, differences = np.full((60, 60), 128, np.uint8), []
    for seed in range(12):
        found = _varied(flat, labels, how, seed)
        one, two = (found.image_B1HW[:, 0][found.labels_BHW == value] for value in (1, 2))
        differences.append(float(one.median() - two.median()))
    assert np.std(differences) > 0.05


def test_slicing_axes_have_names() -> None:
    for index, name in enumerate(("sagittal", "coronal", "axial")):
        for value in (index, name):
            data = {"root": ".", "classes": ["a"], "axis": value}
            found = configuration.parse({"data": data})
            assert configuration.to_dict(found)["data"]["axis"] == index


def _guessed_axes(root: Path) -> list[int]:
    """Labelled p0 and p1 are axial by their header, labelled p2 and unlabelled p4 are not."""
    for index, (name, labelled) in enumerate(
        [("p0", True), ("p1", True), ("p2", True), ("p4", False)]
    ):
        write_case(root / "train", name, index, labelled=labelled)
    for name in ("p2", "p2_gt", "p4"):
        file = root / "train" / f"{name}.nii.gz"
        pixels = np.asarray(nib.load(file).dataobj)
        nib.save(nib.Nifti1Image(pixels, np.diag([9.0, 1, 1, 1])), file)
    return [files.read(file).axis or 0 for file in files.find_images(root / "train")]


def test_the_slicing_axis_is_that_of_most_labelled_volumes(tmp_path: Path) -> None:
    guessed = _guessed_axes(tmp_path)
    images = files.find_images(tmp_path / "train")
    assert guessed == [2, 2, 0, 0] == [files.acquired_axis(image) for image in images]
    assert cases.common_axis(images[:3]) == 2
    assert cases.common_axis(images[2:]) == 0
    assert cases.common_axis([tmp_path / "a.png"]) is None
    config = small_config(tmp_path).data
    split = cases.find(replace(config, labelled=(), axis=1))
    assert {case.read().axis for case in split.labelled + split.unlabelled} == {1}


@pytest.mark.parametrize("shape", [(30, 40, 7), (7, 30, 40), (12, 12, 12)])
def test_the_axis_is_known_from_the_header_in_any_orientation(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    image = nib.Nifti1Image(np.zeros(shape, np.uint8), np.diag([1.0, 1.3, 1.3, 1]))
    for order in itertools.permutations(range(3)):
        turned = image.as_reoriented(np.array([[axis, -1] for axis in order], dtype=float))
        file = tmp_path / f"{''.join(map(str, order))}.nii.gz"
        nib.save(turned, file)
        assert files.acquired_axis(file) == files.read(file).axis


def test_a_window_is_applied_to_all_that_student_and_vessa_see(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    config = replace(small_config(tmp_path).data, window=(50.0, 150.0))
    case = cases.find(config).unlabelled[0]
    image = case.read()
    slices = read_slices((case,), 2, labelled=False, sample=2)
    for item, native in zip(slices, image.slices(), strict=True):
        expected = np.clip((native.astype(float) - 50) / 100, 0, 1)
        assert item.image.dtype == np.uint8
        assert np.abs(item.image.astype(float) / 255 - expected).max() < 0.51 / 255
        assert torch.allclose(item.unit(32)[0], torch.from_numpy(item.image).float() / 255)
        assert torch.equal(item.unit(32), frame.unit(native, 32, config.window))
        assert any(np.array_equal(v, s.image) for v in item.volume for s in slices)


@pytest.mark.parametrize("limits", [None, (10.0, 80.0)])
def test_voxels_without_a_number_are_black(limits: frame.Window | None) -> None:
    image = np.linspace(0, 100, 64, dtype=np.float32).reshape(8, 8)
    image[2, 3], image[4, 4] = np.nan, -np.inf
    unit = frame.unit(image, 32, limits)[0]
    assert unit[2, 3] == unit[4, 4] == 0
    assert bool(torch.isfinite(unit).all())
    assert unit.max() == 1


def test_images_of_up_to_three_pixels_a_pixel_of_the_canvas_stay_as_they_are() -> None:
    rng = np.random.default_rng(0)
    for shape in ((216, 256), (384, 276), (95, 60), (33, 33)):
        image = rng.integers(0, 900, shape).astype(np.int16)
        size = -(-max(shape) // 3)
        plain = frame.to_unit_range(image)
        assert torch.equal(frame.unit(image, size, None), plain)
        assert torch.equal(Slice("", image, None, "").unit(size), plain)


@given(st.integers(2, 6), st.integers(4, 30), st.integers(0, 99))
def test_reducing_takes_the_mean_of_blocks(factor: int, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = rng.random((rows, factor, 32, factor)).astype(np.float32)
    maps = torch.from_numpy(blocks.reshape(1, rows * factor, 32 * factor))
    expected = torch.from_numpy(blocks.mean(axis=(1, 3)))
    assert torch.allclose(frame.reduced(maps, 16)[0], expected, atol=1e-5)


@settings(max_examples=40)
@given(st.integers(96, 500), st.integers(40, 500))
def test_what_is_reduced_stays_in_place(height: int, width: int) -> None:
    size = 32
    rows, columns = np.mgrid[:height, :width] + 0.5
    unit = torch.from_numpy((rows + 2 * columns).astype(np.float32))[None]
    small = frame.reduced(unit, size)
    assert max(small.shape) == 2 * size
    assert float(small.mean()) == pytest.approx(float(unit.mean()), rel=1e-4)
    whole, found = (
        frame.resample(maps, frame.theta((height, width)), size, mode="bilinear")
        for maps in (unit, small)
    )
    # An eighth of a pixel across, in which values rise by 2.
    seen = ndimage.binary_erosion(whole[0].numpy() > 0, iterations=2)
    assert np.abs((whole - found)[0].numpy())[seen].max(initial=0) < 0.25


@pytest.mark.parametrize(
    ("times", "angle"), [((2, 4), 0.0), ((4, 5), 0.0), ((4, 7), 0.0), ((2, 4), 0.3), ((4, 8), 0.3)]
)
def test_slices_of_two_resolutions_are_the_same_to_a_student(
    times: tuple[int, int], angle: float
) -> None:
    """The coarse one has the area means of the fine one, as `prepare` writes it."""
    size = 32
    fine = np.random.default_rng(0).random((times[1] * size, times[1] * size)).astype(np.float32)
    step = np.repeat(np.repeat(fine, times[0], axis=0), times[0], axis=1)
    side = times[0] * size
    coarse = step.reshape(side, times[1], side, times[1]).mean(axis=(1, 3))
    matrix = frame.theta(fine.shape, transform=frame.WeakTransform(angle=angle))
    one, other = (
        frame.resample(frame.unit(image, size, (0.0, 1.0)), matrix, size, mode="bilinear")
        for image in (coarse, fine)
    )
    assert float((one - other).abs().max()) < 2 / 255


def test_the_student_sees_as_little_noise_of_a_large_slice_as_of_a_prepared_one() -> None:
    rng, size = np.random.default_rng(0), 64
    for times in (4, 5, 6):
        noise = rng.normal(100, 20, (times * size, times * size)).astype(np.float32)
        item = Slice("", noise, None, "")
        low, high = item.limits()
        prepared = noise.reshape(size, times, size, times).mean(axis=(1, 3))
        ideal = (prepared - low) / (high - low)
        assert batches.canonical(item, size, None).std() < 1.3 * ideal.std()


@pytest.mark.parametrize(
    "rich_one", [None, RichAugmentationConfig(structure_shift=0, gamma=0, bias=0, noise=0)]
)
def test_labels_of_a_reduced_slice_are_sampled_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rich_one: RichAugmentationConfig | None
) -> None:
    labels = np.zeros((203, 170), np.uint8)
    labels[40:120, 30:90] = 1
    item = Slice("", 100.0 * labels, labels, "")
    config = replace(small_config(tmp_path), labelled_augmentation=rich_one)

    def batch(seed: int) -> batches.LabelledBatch:
        store = stored([item], config.data.size, labelled=True)
        return batches.labelled_batch(store, [0], config, np.random.default_rng(seed))

    assert item.unit(config.data.size).shape[1:] == (64, 54)
    reduced = [batch(seed) for seed in range(4)]
    monkeypatch.setattr(frame, "MOST_PIXELS", 1000)
    assert item.unit(config.data.size).shape[1:] == labels.shape
    for seed, found in enumerate(reduced):
        native = batch(seed)
        assert torch.equal(found.labels_BHW, native.labels_BHW)
        assert float((found.image_B1HW - native.image_B1HW).abs().mean()) < 0.02


def test_mirrored_label_files_of_the_same_place_are_not_learned_mirrored(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    case = cases.find(small_config(tmp_path).data).labelled[0]
    assert case.labels is not None
    plain = read_slices((case,), 2, labelled=True)
    stored = nib.load(case.labels)
    turned = stored.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]], dtype=float))
    assert turned.shape != stored.shape
    nib.save(turned, case.labels)
    for one, other in zip(plain, read_slices((case,), 2, labelled=True), strict=True):
        assert one.labels is not None
        assert other.labels is not None
        assert np.array_equal(one.labels, other.labels)
    nib.save(nib.Nifti1Image(np.asarray(stored.dataobj)[::-1], stored.affine @ SHIFT), case.labels)
    with pytest.raises(files.FileError, match=r"voxels of .* expected the image's.*; resample"):
        read_slices((case,), 2, labelled=True)


SHIFT = np.eye(4)
SHIFT[0, 3] = 3


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e6])
def test_the_unit_of_intensities_does_not_matter(unit: float) -> None:
    image = np.random.default_rng(0).uniform(1, 4, (20, 24))
    expected = frame.to_unit_range(image)
    assert torch.allclose(frame.to_unit_range(unit * image), expected, atol=1e-5)
    grey = [pictures.grey(values).astype(int) for values in (image, unit * image)]
    assert np.abs(grey[0] - grey[1]).max() <= 1
