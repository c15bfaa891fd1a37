"""The trainer with and without a VESSA server."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from ssl_trainer import config as configuration
from ssl_trainer.assistant.feedback import Feedback, begins
from ssl_trainer.cli import app
from ssl_trainer.config import AssistantConfig, TrainConfig
from ssl_trainer.data.batches import SliceSampler
from ssl_trainer.data.cases import Slice
from ssl_trainer.unimatch import state
from ssl_trainer.unimatch.trainer import UniMatchTrainer
from support import CLASSES, RunningServer, picture
from trainer_support import AFFINE, same, single_slices, small_config, write_case, write_dataset

NAMES = tuple(c.name for c in CLASSES)


def train(config: TrainConfig, out: Path, *, stop_after: int | None = None) -> UniMatchTrainer:
    trainer = UniMatchTrainer(config, out)
    if stop_after is None:
        trainer.run()
        return trainer

    def stop(step: int, scalars: dict[str, float]) -> None:
        if step == stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.run(stop)
    return trainer


@pytest.mark.parametrize(
    ("assisted", "changes"),
    [
        (False, {}),
        (True, {}),
        (True, {"precision": "bf16"}),
        (True, {"optimizer": "sgd", "learning_rate": 0.05}),
    ],
)
def test_a_resumed_run_is_the_unbroken_run_bit_for_bit(
    tmp_path: Path, server: RunningServer, assisted: bool, changes: dict[str, Any]
) -> None:
    config = small_config(
        write_dataset(tmp_path / "data"), steps=8, server=server.grpc if assisted else None
    )
    config = dataclasses.replace(config, **changes)
    train(config, tmp_path / "a")
    # Saved at 4, where student masks of step 4 are under way; 5 is lost.
    train(config, tmp_path / "b", stop_after=5)
    train(config, tmp_path / "b")
    assert same(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("ahead", [1, 3, 20])
def test_vessa_is_asked_ahead(tmp_path: Path, server: RunningServer, ahead: int) -> None:
    config = small_config(write_dataset(tmp_path / "data"), steps=6, server=server.grpc)
    assistant = dataclasses.replace(config.assistant, ahead=ahead)
    trainer = UniMatchTrainer(dataclasses.replace(config, assistant=assistant), tmp_path / "run")
    under_way: dict[int, list[int]] = {}
    trainer.run(lambda step, scalars: under_way.update({step: list(trainer._told)}))
    assert under_way == {s: list(range(s, min(s + ahead, 6))) for s in range(1, 7)}


def test_vessa_changes_the_student(tmp_path: Path, server: RunningServer) -> None:
    root = write_dataset(tmp_path / "data")
    train(small_config(root), tmp_path / "a")
    train(small_config(root, server=server.grpc), tmp_path / "b")
    assert not same(tmp_path / "a", tmp_path / "b")
    lines = [json.loads(line) for line in (tmp_path / "b" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["assistant/answered"] == 1.0
    assert lines[-1]["seconds/server/decode_mask"] > 0
    assert lines[-1]["seconds/update"] > 0
    assert 0 <= lines[-1]["val/dice"] <= 1


def test_a_server_whose_labels_do_not_count_any_more_is_not_asked(
    tmp_path: Path, server: RunningServer
) -> None:
    config = small_config(write_dataset(tmp_path / "data"), steps=6, server=server.grpc)
    falling = dataclasses.replace(config.assistant, weight_end=0.0, decay_end=0.5)
    asked: dict[int, bool] = {}
    trainer = UniMatchTrainer(dataclasses.replace(config, assistant=falling), tmp_path / "run")
    trainer.run(lambda step, scalars: asked.update({step: "assistant/weight" in scalars}))
    assert asked == {1: True, 2: True, 3: True, 4: False, 5: False, 6: False}


def test_the_written_configuration_says_how_the_assistants_weight_ends(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    (root / "val" / "p3_frame01_gt.nii.gz").unlink()  # which would be asked
    write_case(root / "train", "p4_frame01", 4, labelled=True)
    for patients, end in ((("p0",), 1.0), (("p0", "p4"), 0.0)):
        config = small_config(root, steps=1)
        data = dataclasses.replace(config.data, labelled=patients)
        trainer = train(dataclasses.replace(config, data=data), tmp_path / patients[-1])
        written = yaml.safe_load((tmp_path / patients[-1] / "config.yaml").read_text())
        assert written["assistant"]["weight_end"] == end
        assert trainer.config == configuration.parse(written)


@pytest.mark.parametrize(("decay", "alike"), [(0.0, True), (0.9, False)])
def test_masks_of_the_teacher_are_sent_where_told(
    tmp_path: Path, server: RunningServer, decay: float, alike: bool
) -> None:
    """A teacher without memory is the student, so that it does not matter whose masks go."""
    config = small_config(write_dataset(tmp_path / "data"), server=server.grpc)
    config = dataclasses.replace(
        config, unimatch=dataclasses.replace(config.unimatch, ema_decay=decay)
    )
    for source in ("student", "teacher"):
        assistant = dataclasses.replace(config.assistant, feedback_from=source)
        stopped = dataclasses.replace(config, assistant=assistant)
        train(stopped, tmp_path / source, stop_after=5)
    # The state of step 4: what updates 4 and 5 were told is under way.
    states = [load_file(tmp_path / name / state.STATE_FILE) for name in ("student", "teacher")]
    for one in states:
        assert {name for name in one if name.startswith("told.")} == {"told.4", "told.5"}
    assert torch.equal(*(one["told.5"] for one in states)) == alike


@pytest.mark.parametrize(("every", "spread"), [(1, 3), (2, 1), (2, 3)])
def test_first_looks_are_at_some_slices_and_spread_over_epochs(
    tmp_path: Path, server: RunningServer, every: int, spread: int
) -> None:
    config = small_config(write_dataset(tmp_path / "data"), server=server.grpc)
    assistant = dataclasses.replace(config.assistant, every=every, spread_epochs=spread)
    config = dataclasses.replace(config, assistant=assistant)
    slices = single_slices(6)
    sampler = SliceSampler(len(slices), config.unlabelled_batch, seed=0)
    feedback = Feedback(config, slices, sampler, 1000)
    answered = np.zeros((3, len(slices)), bool)
    for number in range(9):
        shown = feedback.canvases(number)
        feedback.ask(number, lambda: torch.full((config.unlabelled_batch, 3, 32, 32), 85))
        for row, (index, answer) in enumerate(
            zip(sampler.indices(number), feedback.collect(number), strict=True)
        ):
            assert (row in shown) == (answer is not None)
            if answer is not None:
                assert answer.labels.shape == slices[index].image.shape
                answered[number // 3, index] = True
    feedback.close()
    wanted = np.arange(len(slices)) % every == 0
    assert (answered <= wanted).all()
    assert (answered[spread - 1 :] == wanted).all()
    assert np.array_equal(answered, np.maximum.accumulate(answered)), "once begun, always"
    assert (answered[0].sum() < wanted.sum()) == (spread > 1)


@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=12),
    spread=st.integers(1, 6),
    epochs=st.floats(0.5, 20),
    seed=st.integers(0, 9),
)
def test_volumes_begin_one_after_the_other(
    lengths: list[int], spread: int, epochs: float, seed: int
) -> None:
    image = picture(0)[0]
    slices = [
        Slice("", image, None, str(n)) for n, length in enumerate(lengths) for _ in range(length)
    ]
    found = begins(slices, AssistantConfig(spread_epochs=spread), seed, epochs)
    last = min(spread - 1, 0.6 * epochs)
    of = [
        {found[i] for i, item in enumerate(slices) if item.series == str(n)}
        for n in range(len(lengths))
    ]
    assert all(len(own) == 1 for own in of)
    at = np.array(sorted(own.pop() for own in of)) / (last or 1)
    share = np.arange(len(lengths)) / len(lengths) * (spread > 1)
    assert 1.5 * at - at**2 / 2 == pytest.approx(share)
    assert (np.diff(at, n=2) >= -1e-9).all(), "at first sooner"


def run_cli(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_train_evaluate_predict(tmp_path: Path, server: RunningServer) -> None:
    root = write_dataset(tmp_path / "data")
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(configuration.to_dict(small_config(root))))
    run = tmp_path / "run"
    result = run_cli("train", file, "-o", run, "--server", server.grpc, "--seed", 3)
    assert result.exit_code == 0, result.output
    assert yaml.safe_load((run / "config.yaml").read_text())["seed"] == 3
    assert {"best.safetensors", "last.safetensors", "log.jsonl", "tensorboard"} <= {
        f.name for f in run.iterdir()
    }
    result = run_cli("evaluate", run)
    assert result.exit_code == 0, result.output
    assert "HD95" in result.output
    scores = json.loads((run / "scores_val.json").read_text())
    assert [s["name"] for s in scores] == ["p3_frame01"]
    result = run_cli("predict", run, root / "train", "-o", tmp_path / "seg")
    assert result.exit_code == 0, result.output
    labels = nib.load(tmp_path / "seg" / "p1_frame01_seg.nii.gz")
    assert labels.shape == (44, 48, 3)
    assert np.allclose(labels.affine, AFFINE)


def test_wrong_calls_are_one_line(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(configuration.to_dict(small_config(root))))
    run = tmp_path / "run"
    for arguments, words in (
        (("train", tmp_path / "no.yaml", "-o", run), "No such file"),
        (("train", file, "-o", run, "--set", "data.size=7"), "multiple of 16"),
        (("evaluate", tmp_path / "nothing"), "No such file"),
    ):
        result = run_cli(*arguments)
        assert result.exit_code == 1
        assert words in result.output
        assert "Traceback" not in result.output
    assert run_cli("train", file, "-o", run).exit_code == 0
    result = run_cli("train", file, "-o", run, "--steps", 5)
    assert result.exit_code == 1
    assert "steps: 5 now, 6 when it began" in result.output
    (run / "last.safetensors").write_bytes(b"x")
    result = run_cli("train", file, "-o", run)
    assert result.exit_code == 1
    assert "cannot be read" in result.output
    result = run_cli("evaluate", run, "--split", "test")
    assert result.exit_code == 1
    assert "no cases" in result.output


def test_supervised_training_alone_works(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    for file in (root / "train").glob("p[12]*"):
        file.unlink()
    trainer = train(_weightless(root), tmp_path / "run")
    assert trainer.step == 6
    assert (tmp_path / "run" / "best.safetensors").is_file()


def _weightless(root: Path) -> TrainConfig:
    config = small_config(root)
    return dataclasses.replace(config, unimatch=dataclasses.replace(config.unimatch, weight=0.0))


def test_without_a_weight_unlabelled_images_are_left_out(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    train(_weightless(root), tmp_path / "weightless")
    for file in (root / "train").glob("p[12]*"):
        file.unlink()
    train(_weightless(root), tmp_path / "alone")
    assert same(tmp_path / "weightless", tmp_path / "alone")


def test_seeds_differ_and_repeat(tmp_path: Path) -> None:
    config = small_config(write_dataset(tmp_path / "data"))
    train(config, tmp_path / "a")
    train(config, tmp_path / "b")
    train(dataclasses.replace(config, seed=1), tmp_path / "c")
    assert same(tmp_path / "a", tmp_path / "b")
    assert not same(tmp_path / "a", tmp_path / "c")
