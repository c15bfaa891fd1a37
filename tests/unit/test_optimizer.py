"""Learning rates: which parameters have which, and how they fall."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_trainer import models
from ssl_trainer.config import StudentConfig, TrainConfig
from ssl_trainer.training.optimizer import build_optimizer, layer_groups
from ssl_trainer.training.trainer import Trainer
from trainer_support import DPT, UNET, small_config, write_dataset


def _config(root: Path, student: StudentConfig, **changes: Any) -> TrainConfig:
    config = small_config(root)
    data = replace(config.data, size=2 * student.side_unit)
    return replace(config, data=data, student=student, **changes)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("student", [UNET, DPT], ids=["unet", "dinov2-dpt"])
def test_every_parameter_is_in_one_group(tmp_path: Path, student: StudentConfig, kind: str) -> None:
    model = models.build(student, 2)
    optimizer = build_optimizer(model, _config(tmp_path, student, optimizer=kind))
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.01}


def test_the_decoder_is_faster_than_the_backbone(tmp_path: Path) -> None:
    """UniMatch V2's rates, unless told others."""
    model = models.build(DPT, 2)
    slow = {id(p) for name, p in model.named_parameters() if name.startswith("backbone.")}
    for config, rates in (
        (_config(tmp_path, DPT), (5e-6, 2e-4)),
        (_config(tmp_path, DPT, learning_rate=1e-5), (1e-5, 4e-4)),
        (_config(tmp_path, replace(DPT, head_multiplier=10.0)), (5e-6, 5e-5)),
    ):
        backbone, head = layer_groups(model, config)
        assert {id(p) for p in backbone["params"]} == slow
        assert (backbone["lr"], head["lr"]) == pytest.approx(rates)


def test_a_unet_has_one_rate(tmp_path: Path) -> None:
    model = models.build(UNET, 2)
    for config, rate in (
        (_config(tmp_path, UNET), 1e-3),
        (_config(tmp_path, UNET, learning_rate=0.05), 0.05),
    ):
        assert [group["lr"] for group in layer_groups(model, config)] == [rate]


@pytest.mark.parametrize(
    ("student", "rates"), [(UNET, [1e-3]), (DPT, [5e-6, 2e-4])], ids=["unet", "dinov2-dpt"]
)
def test_all_rates_fall_alike_also_in_a_resumed_run(
    tmp_path: Path, student: StudentConfig, rates: list[float]
) -> None:
    config = _config(write_dataset(tmp_path / "data"), student, steps=5, checkpoint_every=1)
    found = []
    for _ in range(2):
        trainer = Trainer(config, tmp_path / "run")
        trainer.prepare()
        for _ in range(2):
            trainer.train_step()
            found.append([group["lr"] for group in trainer.optimizer.param_groups])
    for step, at_step in enumerate(found):
        assert at_step == pytest.approx([rate * (1 - step / 5) ** 0.9 for rate in rates])


def test_the_written_configuration_has_the_rate(tmp_path: Path) -> None:
    config = _config(write_dataset(tmp_path / "data"), DPT)
    assert config.learning_rate is None
    assert Trainer(config, tmp_path / "run").config.learning_rate == 5e-6


def test_the_first_update_moves_the_backbone_less_than_the_decoder(tmp_path: Path) -> None:
    """AdamW's first step is as long as the rate, whatever the gradient."""
    trainer = Trainer(
        _config(write_dataset(tmp_path / "data"), DPT, weight_decay=0.0), tmp_path / "run"
    )
    before = {name: p.clone() for name, p in trainer.student.named_parameters()}
    trainer.train_step()
    moved = {"backbone": 0.0, "head": 0.0}
    with torch.no_grad():
        for name, parameter in trainer.student.named_parameters():
            part = "backbone" if name.startswith("backbone.") else "head"
            moved[part] = max(moved[part], float((parameter - before[name]).abs().max()))
    assert moved == pytest.approx({"backbone": 5e-6, "head": 2e-4}, rel=0.05)
