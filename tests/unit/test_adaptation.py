"""Fit to bank: what is trained, what is stored, and that it belongs to its weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from support import CLASSES, picture, tiny_config, tiny_model
from vessa_server.bank import TemplateBank
from vessa_server.model import checkpoint
from vessa_server.training import adaptation
from vessa_server.training.config import TrainingConfig
from vessa_server.training.episodes import EpisodeGenerator

CONFIG = TrainingConfig(
    steps=3,
    images_per_group=3,
    max_templates=2,
    log_every=1,
    structure_shift=0.1,
    synthetic_share=0.0,
    text_share=0.0,
    repeats=2,
)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    checkpoint.save(tiny_model(), tmp_path / "weights")
    return tmp_path / "weights"


@pytest.fixture
def bank(tmp_path: Path) -> TemplateBank:
    bank = TemplateBank(tmp_path / "bank")
    for seed in range(4):
        image, labels = picture(seed)
        bank.add(image, np.where(labels == 1, 1, 0) if seed == 0 else labels, CLASSES)
    return bank


def test_an_adaptation_changes_what_it_says_and_nothing_else(
    tmp_path: Path, weights: Path, bank: TemplateBank
) -> None:
    file = adaptation.adapt(weights, tiny_config(), bank, CONFIG, tmp_path / "out")
    delta = load_file(file)
    assert all(name.startswith(adaptation.ADAPTED_PREFIXES) for name in delta)
    base, adapted = (checkpoint.load(tiny_config(), weights) for _ in range(2))
    digest = checkpoint.apply_delta(adapted, file, checkpoint.digest(weights))
    assert digest != checkpoint.digest(weights)
    changed = {
        name
        for name, tensor in base.state_dict().items()
        if not torch.equal(tensor, adapted.state_dict()[name])
    }
    assert changed
    assert changed <= set(delta)
    assert not any(name.startswith("reasoner.") for name in changed)


def test_an_adaptation_belongs_to_its_weights(
    tmp_path: Path, weights: Path, bank: TemplateBank
) -> None:
    file = adaptation.adapt(weights, tiny_config(), bank, CONFIG, tmp_path / "out")
    checkpoint.save(tiny_model(seed=3), tmp_path / "other")
    other = checkpoint.load(tiny_config(), tmp_path / "other")
    with pytest.raises(checkpoint.CheckpointError, match="other weights"):
        checkpoint.apply_delta(other, file, checkpoint.digest(tmp_path / "other"))


def test_labels_of_all_templates_follow_the_banks_classes(bank: TemplateBank) -> None:
    pack = adaptation.bank_pack(bank, 64)
    assert [text.name for text in pack.sources[0].texts] == ["disc", "bar"]
    assert not pack.held_out_R.any()
    for row, info in enumerate(bank.snapshot().templates):
        template = bank.load(info)
        for value, name in enumerate(("disc", "bar"), start=1):
            if name in info.class_names:
                assert np.array_equal(pack.label(row) == value, template.mask(name) > 0)


def test_a_task_shows_few_pictures_in_several_looks_each(bank: TemplateBank) -> None:
    config = adaptation.adaptation_config(3, 0)
    generator = EpisodeGenerator(adaptation.bank_pack(bank, 64), config, 64)
    for number in range(5):
        plan = generator.planner.plan(number)
        for rows in plan.rows_N.view(3, 4).numpy():
            assert [list(rows).count(row) for row in set(rows)] == [2, 2]
        episode = generator[number]
        assert not episode.reads
        assert len({float(image.sum()) for image in episode.image_N3HW}) == 12
    one = TemplateBank(bank.folder.parent / "one")
    image, labels = picture(1)
    one.add(image, labels, CLASSES)
    assert float(EpisodeGenerator(adaptation.bank_pack(one, 64), config, 64)[0].weight_P.sum()) > 0


def test_an_empty_bank_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vessa templates add"):
        adaptation.bank_pack(TemplateBank(tmp_path), 64)


def test_structures_change_their_intensity_each_on_its_own(bank: TemplateBank) -> None:
    pictures = []
    for shift in (0.0, 0.3):
        config = dataclasses.replace(CONFIG, structure_shift=shift)
        generator = EpisodeGenerator(adaptation.bank_pack(bank, 64), config, 64)
        pictures.append(generator.pictures(0))
    (plain, labels), (shifted, _) = pictures
    changed = (plain - shifted).abs().mean(dim=1) > 1e-6
    near = torch.nn.functional.max_pool2d((labels > 0).float()[:, None], 3, 1, 1)[:, 0] > 0
    assert float((changed & near).float().mean()) > 0.02
    # A blur of the whole image may carry it one pixel further.
    near = torch.nn.functional.max_pool2d(near.float()[:, None], 3, 1, 1)[:, 0] > 0
    assert not bool((changed & ~near).any())
