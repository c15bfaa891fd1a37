"""Label maps of whole volumes, and which components of them are kept."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from typer.testing import CliRunner

from ssl_trainer import models
from ssl_trainer.cli import app
from ssl_trainer.config import AugmentationConfig, RichAugmentationConfig, to_dict
from ssl_trainer.data.cases import find
from ssl_trainer.evaluation.evaluate import choose_largest_component, evaluate
from ssl_trainer.evaluation.predictor import (
    PREDICTION,
    Predictor,
    keep_largest_components,
    turns,
    write_choice,
)
from ssl_trainer.models import weights
from ssl_trainer.training import state
from ssl_trainer.training import trainer as training
from ssl_trainer.training.trainer import Trainer, load_student
from support_devices import exact_products
from support_syncs import on_fake_cuda
from trainer_support import AFFINE, UNET, small_config, write_case, write_dataset
from vessa_client import UInt8Array, files
from vessa_common.processes import own_device


def _components(mask_ZHW: np.ndarray) -> list[set[tuple[int, ...]]]:
    """By a search from voxel to voxel."""
    todo = {tuple(int(i) for i in at) for at in np.argwhere(mask_ZHW)}
    found = []
    while todo:
        component, border = set(), {todo.pop()}
        while border:
            component |= border
            near = {at for at in todo if any(_touch(at, other) for other in border)}
            todo -= near
            border = near
        found.append(component)
    return found


def _touch(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) == 1


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.4), st.sets(st.integers(1, 2)))
def test_the_largest_piece_stays_whole_and_nothing_else_does(
    seed: int, density: float, values: set[int]
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, 3, (3, 7, 6)) * (rng.random((3, 7, 6)) < density)
    labels_ZHW: UInt8Array = labels.astype(np.uint8)
    before = labels_ZHW.copy()
    kept = keep_largest_components(labels_ZHW, sorted(values))
    assert np.array_equal(labels_ZHW, before)
    for value in (1, 2):
        components = _components(before == value)
        if value not in values or not components:
            assert np.array_equal(kept == value, before == value)
            continue
        (left,) = _components(kept == value)
        assert left in components
        assert len(left) == max(len(component) for component in components)
    assert not (kept != before)[kept != 0].any()


class _Bright(nn.Module):
    """Takes what is bright for a disc, and what is grey for a bar."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.ones(1))

    def forward(self, image_B1HW: Tensor) -> Tensor:
        grey = 10 * (0.3 - (image_B1HW - 0.5).abs())
        return torch.cat([self.bias.expand_as(image_B1HW), 20 * (image_B1HW - 0.8), grey], dim=1)


def _write(root: Path, *, speck: bool) -> None:
    """A disc, of which a speck is no part, and a bar in two components, which both are."""
    image, truth = np.zeros((48, 48, 3), np.float32), np.zeros((48, 48, 3), np.uint8)
    rows, columns = np.mgrid[:48, :48]
    disc = (rows - 16) ** 2 + (columns - 16) ** 2 < 8**2
    image[disc], truth[disc] = 1.0, 1
    if speck:
        image[36:44, 4:12] = 1.0
    for row in (4, 30):
        image[row : row + 8, 32:44], truth[row : row + 8, 32:44] = 0.5, 2
    for suffix, volume in (("", image), ("_gt", truth)):
        nib.save(nib.Nifti1Image(volume, AFFINE), root / f"p3_frame01{suffix}.nii.gz")


def test_pieces_are_dropped_where_that_is_better_on_validation_cases(tmp_path: Path) -> None:
    config = small_config(write_dataset(tmp_path))
    predictor = Predictor(_Bright(), 48)
    chosen = {}
    for speck in (True, False):
        _write(tmp_path / "val", speck=speck)
        val = find(config.data).val
        chosen[speck], scores = choose_largest_component(predictor, val, config.data.classes)
        own = replace(predictor, largest_component=chosen[speck])
        assert scores == evaluate(own, val, config.data.classes)
    assert chosen == {True: (1,), False: ()}
    assert choose_largest_component(predictor, (), config.data.classes) == ((), [])


def test_a_run_keeps_what_was_chosen(tmp_path: Path) -> None:
    config = small_config(write_dataset(tmp_path))
    predictor = Predictor(_Bright(), 48)
    assert predictor.as_chosen(tmp_path, config) == predictor
    for values in ((), (2,), (1, 2)):
        write_choice(tmp_path, config, values)
        assert predictor.as_chosen(tmp_path, config).largest_component == values
    for damaged in (
        "{",
        "[]",
        "{}",
        '{"largest_component": ["heart"]}',
        '{"largest_component": 3}',
    ):
        (tmp_path / PREDICTION).write_text(damaged)
        with pytest.raises(ValueError, match="ssl-trainer report"):
            predictor.as_chosen(tmp_path, config)


def test_commands_keep_the_pieces_that_the_report_chose(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    run, config = tmp_path / "run", small_config(root, steps=60)
    Trainer(config, run).run()
    assert CliRunner().invoke(app, ["report", str(run)]).exit_code == 0
    assert set(json.loads((run / PREDICTION).read_text())) == {"largest_component"}
    write_choice(run, config, (1, 2))
    best = load_student(run, config)
    assert len(best.turns) == 5
    found = {}
    for options in ((), ("--plain",)):
        out = tmp_path / f"out{len(options)}"
        command = ["predict", str(run), str(root / "val"), "--out", str(out), *options]
        assert CliRunner().invoke(app, command).exit_code == 0
        file = next(out.glob("p3_frame01_seg*"))
        found[options] = np.stack(list(files.read(file, labels=True).slices()))
    image = files.read(root / "val" / "p3_frame01.nii.gz")
    assert np.array_equal(found["--plain",], np.stack(best.plain()(image)))
    whole = np.stack(best(image))
    assert np.array_equal(found[()], keep_largest_components(whole, (1, 2)))
    assert whole.any()
    assert not np.array_equal(whole, found["--plain",])


def test_names_with_brackets_are_shown_as_they_are(tmp_path: Path) -> None:
    """They would be markup, and one without a beginning an error."""
    root = tmp_path / "data"
    write_case(root / "train" / "p0[", "image", 0, labelled=True)
    write_case(root / "train" / "p1[b]", "image", 1, labelled=False)
    write_case(root / "val", "p3", 3, labelled=True)
    config = small_config(root, steps=2)
    data = replace(config.data, classes=("[left]", "[/b]"), labelled=("p0[",))
    file, run = tmp_path / "config.yaml", tmp_path / "[/run]"
    file.write_text(yaml.safe_dump(to_dict(replace(config, data=data))))
    commands = (("train", file, "-o", run, "--threads", 1), ("evaluate", run), ("report", run))
    said = []
    for command in commands:
        result = CliRunner().invoke(app, [*map(str, command)], env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        said.append(result.output)
    assert "(p0[, p1[b])" in said[0]
    assert str(run / "best.safetensors") in said[0]
    assert "[left]" in said[1]
    assert "[/b]" in said[1]
    assert str(run / "scores_val.json") in said[1]
    assert str(run / "report.md") in said[2]


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_commands_take_the_best_or_the_last_student(tmp_path: Path, command: str) -> None:
    root = write_dataset(tmp_path / "data")
    run, config = tmp_path / "run", small_config(root, steps=60)
    trainer = Trainer(config, run)
    trainer.run()
    last = trainer.teacher.model
    # Another one was best.
    best = models.build(config.student, 2)
    weights.save(run / state.BEST_FILE, best, config)
    students: dict[training.Checkpoint, torch.nn.Module] = {"best": best, "last": last}
    for checkpoint, expected in students.items():
        predictor = load_student(run, config, checkpoint)
        found = predictor.student.state_dict()
        assert all(torch.equal(found[n], value) for n, value in expected.state_dict().items())
        own = [] if checkpoint == "best" else ["--checkpoint", "last"]
        if command == "evaluate":
            assert CliRunner().invoke(app, [command, str(run), *own]).exit_code == 0
            scores = evaluate(predictor, find(config.data).val, config.data.classes)
            name = "scores_val.json" if checkpoint == "best" else "scores_val_last.json"
            written = json.loads((run / name).read_text())
            assert written == json.loads(json.dumps([asdict(score) for score in scores]))
        else:
            out = tmp_path / checkpoint
            arguments = [command, str(run), str(root / "val"), "--out", str(out), *own]
            assert CliRunner().invoke(app, arguments).exit_code == 0
            file = next(out.glob("p3_frame01_seg*"))
            labels = np.stack(list(files.read(file, labels=True).slices()))
            image = files.read(root / "val" / "p3_frame01.nii.gz")
            assert np.array_equal(labels, np.stack(predictor(image)))


def test_the_best_student_is_on_the_device_at_hand(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    run, config = tmp_path / "run", small_config(root)
    Trainer(config, run).run()
    best = load_student(run, config)
    at_hand = "cuda" if torch.cuda.is_available() else "cpu"
    assert {t.device.type for t in best.student.state_dict().values()} == {at_hand}
    image = files.read(root / "val" / "p3_frame01.nii.gz")
    with exact_products():
        found = np.stack(best(image))
    on_cpu = replace(best, student=best.student.cpu())
    assert np.mean(found == np.stack(on_cpu(image))) > 0.999


def test_a_process_has_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert own_device() == torch.device("cuda", 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert own_device() == torch.device("cpu")


def test_commands_ask_the_student_where_there_is_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors of ``meta`` have a device, as those of a GPU, and no values."""
    run, config = tmp_path / "run", small_config(write_dataset(tmp_path / "data"), steps=1)
    Trainer(config, run).run()
    monkeypatch.setattr(training, "own_device", lambda: torch.device("meta"))
    best = load_student(run, config)
    for predictor in (best, best.plain(), best.as_chosen(run, config)):
        assert {p.device.type for p in predictor.student.parameters()} == {"meta"}


def test_batches_go_to_the_students_device_and_come_back() -> None:
    student = models.build(UNET, 2).eval()
    with on_fake_cuda(student):
        found = models.predict_probabilities(student, torch.rand(2, 1, 32, 32))
    assert (found.device.type, found.shape) == ("cpu", (2, 3, 32, 32))


class _UpperHalf(nn.Module):
    """Takes the upper half of a view for a structure, more so the farther up."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, image_B1HW: Tensor) -> Tensor:
        height = torch.linspace(-8, 8, image_B1HW.shape[2])[:, None].expand(image_B1HW.shape)
        return torch.cat([height, -height], dim=1) * self.scale


@pytest.mark.parametrize("angles", [(0.0,), (30.0,), (-30.0,), (0.0, 30.0), (24.0, -24.0, 10.0)])
def test_views_are_turned_back_before_they_are_added(
    tmp_path: Path, angles: tuple[float, ...]
) -> None:
    file = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((60, 60, 2), np.float32), AFFINE), file)
    labels = Predictor(_UpperHalf(), 64, angles)(files.read(file))
    rows, columns = np.mgrid[:60, :60] + 0.5 - 30
    above = np.zeros((60, 60))
    for angle in np.radians(angles):
        # A view turned by an angle shows a point as far up as this, where its corners are in it.
        up = rows * np.cos(angle) - columns * np.sin(angle)
        aside = rows * np.sin(angle) + columns * np.cos(angle)
        seen = (np.abs(up) <= 30) & (np.abs(aside) <= 30)
        above += seen * np.tanh(-8 * up / 30)
    sure = np.abs(above) > 0.2
    for slice_HW in labels:
        assert np.array_equal(slice_HW[sure] == 1, above[sure] > 0)


def test_views_are_like_those_of_the_training(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    weak = AugmentationConfig(rotation_degrees=10.0)
    rich = RichAugmentationConfig(geometry=AugmentationConfig(rotation_degrees=180.0))
    for augmented, most in ((None, 8.0), (rich, 24.0), (RichAugmentationConfig(), 24.0)):
        own = replace(config, augmentation=weak, labelled_augmentation=augmented)
        angles = turns(own)
        assert angles[0] == 0
        assert max(angles) == -min(angles) == pytest.approx(most)
    still = replace(weak, rotation_degrees=0.0)
    assert turns(replace(config, augmentation=still, labelled_augmentation=None)) == (0.0,)
