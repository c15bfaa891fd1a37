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
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from ssl_trainer import config as configuration
from ssl_trainer.cli import app
from ssl_trainer.config import TrainConfig
from ssl_trainer.data import batches
from ssl_trainer.models import predict_probabilities
from ssl_trainer.training import state
from ssl_trainer.training.trainer import Trainer
from support import RunningServer
from trainer_support import AFFINE, same, small_config, write_dataset


def train(config: TrainConfig, out: Path, *, stop_after: int | None = None) -> Trainer:
    trainer = Trainer(config, out)
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
    trainer = Trainer(dataclasses.replace(config, assistant=assistant), tmp_path / "run")
    assert trainer.pipeline is not None
    under_way, prompts = dict[int, list[int]](), trainer.pipeline.prompts
    trainer.run(lambda step, scalars: under_way.update({step: list(prompts)}))
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


def test_a_server_whose_labels_do_not_count_is_not_asked(
    tmp_path: Path, server: RunningServer
) -> None:
    root = write_dataset(tmp_path / "data")
    config = small_config(root, steps=6, server=server.grpc)
    weightless = dataclasses.replace(config.assistant, weight=0.0)
    config = dataclasses.replace(config, assistant=weightless)
    train(config, tmp_path / "run", stop_after=3)
    trainer = train(config, tmp_path / "run")
    assert trainer.pipeline is not None
    assert trainer.pipeline.prompts == {}
    train(small_config(root), tmp_path / "alone")
    assert same(tmp_path / "alone", tmp_path / "run")


@pytest.mark.parametrize(("decay", "alike"), [(0.0, True), (0.9, False)])
def test_prompts_are_the_teachers(
    tmp_path: Path, server: RunningServer, decay: float, alike: bool
) -> None:
    """As it is when the update is asked about; a teacher without memory is the student."""
    config = small_config(write_dataset(tmp_path / "data"), server=server.grpc)
    config = dataclasses.replace(
        config, unimatch=dataclasses.replace(config.unimatch, ema_decay=decay)
    )
    trainer = Trainer(config, tmp_path / "run")
    assert trainer.unlabelled_sampler is not None
    chosen = trainer.unlabelled_sampler.indices(5)
    canvases = torch.stack([batches.canonical(trainer.unlabelled[i], 32, None) for i in chosen])
    expected: dict[str, torch.Tensor] = {}

    def on_step(step: int, scalars: dict[str, float]) -> None:
        if step == 3:  # next update 5 is asked about, two ahead
            for name, model in (("teacher", trainer.teacher.model), ("student", trainer.student)):
                expected[name] = (255 * predict_probabilities(model, canvases)).round()
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.run(on_step)
    saved = load_file(tmp_path / "run" / state.STATE_FILE)  # of step 4
    assert {name for name in saved if name.startswith("prompts.")} == {"prompts.4", "prompts.5"}
    assert torch.allclose(saved["prompts.5"].float(), expected["teacher"], atol=1)
    assert torch.equal(expected["teacher"], expected["student"]) == alike


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
