"""Quarter turns: in augmentation, and in the views of a prediction."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from ssl_trainer import models
from ssl_trainer.cli import app
from ssl_trainer.config import (
    AugmentationConfig,
    DataConfig,
    RichAugmentationConfig,
    TrainConfig,
)
from ssl_trainer.data import batches, frame
from ssl_trainer.data.cases import find
from ssl_trainer.data.slices import Slice
from ssl_trainer.evaluation.evaluate import evaluate
from ssl_trainer.evaluation.predictor import Predictor
from ssl_trainer.evaluation.volumes import Quarters
from ssl_trainer.models import predict_probabilities, weights
from ssl_trainer.training.state import BEST_FILE
from ssl_trainer.training.trainer import Trainer, load_student
from support import picture
from trainer_support import AFFINE, UNET, stored, write_dataset
from vessa_client import files

SIZE = 32
STILL = AugmentationConfig(rotation_degrees=0, zoom_min=1, zoom_max=1, shift=0)
QUARTERS = replace(STILL, quarter_turns=1.0)


def _config(root: Path) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(root=root, classes=("disc", "bar"), labelled=("p0",), size=SIZE),
        student=UNET,
        regions=False,
        steps=2,
        labelled_batch=2,
        unlabelled_batch=2,
        precision="fp32",
    )


def _flipped(image_HW: np.ndarray) -> list[np.ndarray]:
    """Turned by each quarter, and flipped along either axis."""
    turned = [np.rot90(image_HW, k) for k in range(4)]
    return [np.flip(t, axis) for t in turned for axis in (0, 1)]


@given(st.integers(0, 1000), st.booleans())
def test_without_quarter_turns_the_random_numbers_are_what_they_were(
    seed: int, mirror: bool
) -> None:
    config, rng = AugmentationConfig(mirror=mirror), np.random.default_rng(seed)
    found = frame.WeakTransform.draw(np.random.default_rng(seed), config)
    turn = math.radians(20)
    assert found == frame.WeakTransform(
        angle=float(rng.uniform(-turn, turn)) if rng.uniform() < 0.5 else 0.0,
        zoom=float(np.exp(rng.uniform(*np.log([0.8, 1.5])))),
        mirror_x=bool(mirror and rng.uniform() < 0.5),
        mirror_y=bool(mirror and rng.uniform() < 0.5),
        shift_x=float(rng.uniform(-0.1, 0.1)),
        shift_y=float(rng.uniform(-0.1, 0.1)),
    )


def test_half_of_the_slices_are_turned_by_a_quarter_and_flipped() -> None:
    rng = np.random.default_rng(0)
    config = AugmentationConfig(quarter_turns=0.5)
    drawn = [frame.WeakTransform.draw(rng, config) for _ in range(4000)]
    flipped = [t for t in drawn if t.mirror_x or t.mirror_y]
    assert len(flipped) / 4000 == pytest.approx(0.5, abs=0.03)
    assert all(t.mirror_x != t.mirror_y for t in flipped)
    kinds = [(round(t.angle / frame.QUARTER), t.mirror_x) for t in flipped]
    for kind in set(kinds):
        assert kinds.count(kind) / len(kinds) == pytest.approx(1 / 8, abs=0.03)
    assert len(set(kinds)) == 8
    assert {math.remainder(t.angle, frame.QUARTER) for t in flipped} == {0.0}
    others = [abs(t.angle) for t in drawn if not (t.mirror_x or t.mirror_y)]
    assert max(others) <= math.radians(20)
    assert np.mean(np.array(others) > 0) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("rich", [False, True])
def test_images_and_labels_of_both_kinds_are_turned(tmp_path: Path, rich: bool) -> None:
    image, labels = picture(1, (SIZE, SIZE))
    slices = [Slice("a/0", image, labels, "a")]
    varied = RichAugmentationConfig(geometry=QUARTERS, elastic=0) if rich else None
    config = replace(_config(tmp_path), augmentation=QUARTERS, labelled_augmentation=varied)
    canvas = batches.canonical(slices[0], SIZE, None)[0].numpy()
    store = stored(slices, SIZE, labelled=True)
    truths, views = set(), set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        labelled = batches.labelled_batch(store, [0], config, rng)
        truths.add(_which(labelled.labels_BHW[0].numpy(), _flipped(labels)))
        unlabelled = batches.unlabelled_batch(store, [0], config, rng)
        views.add(_which(unlabelled.image_B1HW[0, 0].numpy(), _flipped(canvas)))
    # A half turn and one flip are the other flip.
    assert len(truths) == len(views) == 4


def _which(found: np.ndarray, candidates: list[np.ndarray]) -> int:
    """The first that it is."""
    return next(i for i, c in enumerate(candidates) if np.abs(c - found).max() < 1e-3)


def test_a_fraction_is_expected() -> None:
    with pytest.raises(ValueError, match=r"quarter_turns: 1\.5, expected a fraction"):
        AugmentationConfig(quarter_turns=1.5)


class _Seen(nn.Module):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))
        self.views: list[np.ndarray] = []

    def forward(self, image_B1HW: Tensor) -> Tensor:
        self.views += list(image_B1HW[:, 0].numpy())
        return torch.cat([image_B1HW, -image_B1HW], dim=1) + self.bias


def _volume(file: Path, slices: list[np.ndarray]) -> files.ImageFile:
    nib.save(nib.Nifti1Image(np.stack(slices, axis=2).astype(np.float32), AFFINE), file)
    return files.read(file)


def _student(seed: int) -> models.Student:
    """Of random weights, large enough that it finds something of everything."""
    torch.manual_seed(seed)
    student = models.build(UNET, 2).eval()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(2)
    return student


def _noise(seed: int, count: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    coarse = rng.random((count, SIZE // 4, SIZE // 4))
    return list(coarse.repeat(4, axis=1).repeat(4, axis=2))


def test_averaged_views_are_those_of_the_augmentation(tmp_path: Path) -> None:
    student = _Seen()
    image = _volume(tmp_path / "a.nii.gz", _noise(0, 1))
    upright = next(iter(image.slices()))
    canvas = frame.unit(upright, SIZE, None)[0].numpy()
    Predictor(student, SIZE, quarters="average")(image)
    turned = [np.rot90(canvas, k) for k in range(4)]
    shown = {_which(view, [*turned, *_flipped(canvas)]) for view in student.views}
    assert len(student.views) == len(shown) == 8
    student.views.clear()
    Predictor(student, SIZE, turns=(0.0, 10.0, -10.0), quarters="average")(image)
    assert len(student.views) == 24


@pytest.mark.parametrize("quarters", ["average", "choose"])
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 3))
def test_a_turned_picture_has_turned_labels(
    tmp_path_factory: pytest.TempPathFactory, quarters: Quarters, seed: int, turns: int
) -> None:
    folder, (upright,) = tmp_path_factory.mktemp("pictures"), _noise(seed, 1)
    predictor = Predictor(_student(seed), SIZE, quarters=quarters)
    found = []
    for name, image in (("a", upright), ("b", np.rot90(upright, turns))):
        file = folder / f"{name}.png"
        Image.fromarray((255 * image).astype(np.uint8)).save(file)
        found.append(predictor(files.read(file))[0])
    assert np.mean(np.rot90(found[0], turns) == found[1]) > 0.995


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_the_chosen_quarter_has_the_highest_expected_dice(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    image = _volume(tmp_path_factory.mktemp("volumes") / "a.nii.gz", _noise(seed))
    student, slices = _student(seed), [frame.unit(s, SIZE, None)[0] for s in image.slices()]
    scores, labels = list[float](), []
    for turns in range(4):
        views = torch.stack([torch.rot90(s, turns)[None] for s in slices])
        maps = torch.rot90(predict_probabilities(student, views), -turns, dims=(2, 3)).numpy()
        found = maps.argmax(axis=1)
        dices = []
        for c in (1, 2):
            overlap = maps[:, c][found == c].sum()
            dices.append(2 * overlap / (maps[:, c].sum() + (found == c).sum()))
        scores.append(float(np.mean(dices)))
        labels.append(found)
    chosen = np.stack(Predictor(student, SIZE, quarters="choose")(image))
    order = sorted(range(4), key=scores.__getitem__)
    if scores[order[-1]] - scores[order[-2]] > 1e-4:
        assert np.mean(chosen == labels[order[-1]]) > 0.995


class _Upright(nn.Module):
    """Finds the bright half of a view where that is the upper one, else it is unsure."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, image_B1HW: Tensor) -> Tensor:
        upper, lower = image_B1HW.chunk(2, dim=2)
        sure = (upper.mean((1, 2, 3)) - lower.mean((1, 2, 3))).clamp(min=0)[:, None, None, None]
        height = torch.linspace(1, -1, image_B1HW.shape[2]).sign()[:, None].expand(image_B1HW.shape)
        logits = self.scale * sure * height + 0.1
        return torch.cat([torch.zeros_like(logits), logits], dim=1)


@pytest.mark.parametrize("turns", range(4))
def test_a_student_that_knows_one_orientation_finds_it(tmp_path: Path, turns: int) -> None:
    image = np.zeros((SIZE, SIZE))
    image[:, SIZE // 2 :] = 1
    slices = [np.rot90(image, turns)] * 3
    volume = _volume(tmp_path / "a.nii.gz", slices)
    bright = np.stack(list(volume.slices())).astype(np.float32) > 0.5
    right = {
        q: np.mean((np.stack(Predictor(_Upright(), SIZE, quarters=q)(volume)) == 1) == bright)
        for q in ("none", "choose")
    }
    assert right["choose"] == 1
    if not bright[:, : SIZE // 2].all():
        assert right["none"] == 0.5


def test_a_student_is_asked_as_it_was_trained(tmp_path: Path) -> None:
    root, runner = write_dataset(tmp_path / "data"), CliRunner()
    plain = _config(root)
    trained = RichAugmentationConfig(geometry=AugmentationConfig(quarter_turns=0.5))
    for name, config, default in (
        ("plain", plain, "none"),
        ("turned", replace(plain, labelled_augmentation=trained), "average"),
        ("unlabelled", replace(plain, augmentation=QUARTERS), "none"),
    ):
        run = tmp_path / name
        Trainer(config, run).run()
        best = load_student(run, config)
        assert best.quarters == default
        assert best.plain().quarters == "none"
        known = {"none", "choose"} | ({"average"} if default == "average" else set())
        for quarters in get_args(Quarters):
            found = runner.invoke(app, ["evaluate", str(run), "--quarters", quarters])
            assert (found.exit_code == 0) == (quarters in known), found.output
    assert "trained without quarter_turns" in _error(runner, run, "average")
    assert "expected none, average or choose" in _error(runner, run, "both")


def _error(runner: CliRunner, run: Path, quarters: str) -> str:
    found = runner.invoke(app, ["evaluate", str(run), "--quarters", quarters])
    assert found.exit_code == 1
    return " ".join(found.output.split())


def test_scores_are_those_of_the_quarters_asked_for(tmp_path: Path) -> None:
    run, config = tmp_path / "run", _config(write_dataset(tmp_path / "data"))
    trained = RichAugmentationConfig(geometry=AugmentationConfig(quarter_turns=0.5))
    config = replace(config, labelled_augmentation=trained)
    Trainer(config, run).run()
    weights.save(run / BEST_FILE, _student(3), config)  # which finds more than one of two updates
    best, split, scores = load_student(run, config), find(config.data), {}
    for quarters in ("none", "average", "choose"):
        command = ["evaluate", str(run), "--quarters", quarters]
        assert CliRunner().invoke(app, command).exit_code == 0
        scores[quarters] = json.loads((run / f"scores_val_quarters-{quarters}.json").read_text())
        (expected,) = evaluate(best.turned(quarters, config), split.val, config.data.classes)
        assert scores[quarters][0]["dice"] == list(expected.dice)
    assert scores["none"] != scores["average"]
