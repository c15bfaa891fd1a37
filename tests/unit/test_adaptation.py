"""Fit to bank: what is trained, what is stored, and that it belongs to its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from support import CLASSES, picture, tiny_config, tiny_model
from vessa_server.bank import TemplateBank
from vessa_server.model import checkpoint
from vessa_server.training import adaptation
from vessa_server.training.augment import SpatialTransform, shift_structures
from vessa_server.training.config import TrainingConfig

CONFIG = TrainingConfig(
    steps=3, images_per_group=3, max_templates=2, log_every=1, structure_shift=0.1
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
    source = adaptation.BankSource(bank, mirror=True)
    assert [text.name for text in source.texts] == ["disc", "bar"]
    images, _ = source.sample(np.random.default_rng(0), 4)
    for item, info in zip(source.images, bank.snapshot().templates, strict=True):
        template = bank.load(info)
        for value, name in enumerate(("disc", "bar"), start=1):
            if name in info.class_names:
                assert np.array_equal(item.labels == value, template.mask(name) > 0)
    assert len(images) == 4


def test_an_empty_bank_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vessa templates add"):
        adaptation.BankSource(TemplateBank(tmp_path), mirror=True)


def test_structures_change_their_intensity_each_on_its_own() -> None:
    image, labels = torch.full((3, 20, 20), 0.5), torch.zeros(20, 20, dtype=torch.uint8)
    labels[3:9, 3:9], labels[12:18, 12:18] = 1, 2
    shifted = shift_structures(image, labels, 0.2, np.random.default_rng(0))
    inner = [float(shifted[0, 5, 5]), float(shifted[0, 15, 15]), float(shifted[0, 1, 18])]
    assert inner[2] == 0.5
    assert len(set(inner)) == 3


def test_variation_is_stronger_where_it_is_asked_for() -> None:
    shared = SpatialTransform(angle=0.0, zoom=1.0, mirror=False, centre=(0.0, 0.0), elastic=0.01)
    rng = np.random.default_rng(0)
    angles = [
        np.std([shared.vary(rng, strength=strength).angle for _ in range(300)])
        for strength in (1.0, 2.0)
    ]
    assert 0.17 < angles[0] < 0.23
    assert 0.34 < angles[1] < 0.46
