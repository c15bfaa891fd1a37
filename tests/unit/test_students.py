"""Students: both kinds behave alike, and DINOv2 + DPT loads published weights."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
import yaml
from transformers import Dinov2Config, Dinov2Model

from ssl_trainer import models
from ssl_trainer.config import (
    ConfigError,
    DptStudentConfig,
    StudentConfig,
    load,
    parse,
    to_dict,
)
from ssl_trainer.methods import losses
from ssl_trainer.models.dpt import DptStudent
from ssl_trainer.training.state import StateError
from ssl_trainer.training.trainer import Trainer, load_student
from trainer_support import DPT, UNET, small_config, write_dataset

BOTH = pytest.mark.parametrize("config", [UNET, DPT], ids=["unet", "dinov2-dpt"])


@BOTH
def test_logits_have_the_images_size(config: StudentConfig) -> None:
    torch.manual_seed(0)
    student = models.build(config, 3).eval()
    height, width = 4 * config.side_unit, 3 * config.side_unit
    assert student(torch.rand(2, 1, height, width)).shape == (2, 4, height, width)


@BOTH
def test_every_parameter_that_is_trained_has_a_gradient(config: StudentConfig) -> None:
    """Processes that train together would wait for the others."""
    student = models.build(config, 2)
    side = 2 * config.side_unit
    student(torch.rand(2, 1, side, side)).square().mean().backward()
    for name, parameter in student.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_a_compiled_unet_has_the_logits_and_gradients_of_the_eager_one() -> None:
    torch.manual_seed(0)
    eager = models.build(UNET, 2)
    compiled = copy.deepcopy(eager)
    compiled.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    image = torch.rand(3, 1, 32, 48)
    masks = [torch.rand(3, channels) for channels in eager.encoder_channels]
    logits = [student(image, masks) for student in (eager, compiled)]
    torch.testing.assert_close(logits[1], logits[0])
    for values in logits:
        values.square().mean().backward()
    for (name, own), other in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        if own.grad is None:
            assert other.grad is None, name
        else:
            assert other.grad is not None, name
            torch.testing.assert_close(other.grad, own.grad, msg=name)
    for one, another in zip(eager.buffers(), compiled.buffers(), strict=True):
        torch.testing.assert_close(another, one)


@BOTH
def test_dropped_channels_do_not_reach_the_logits(config: StudentConfig) -> None:
    torch.manual_seed(0)
    student = models.build(config, 2).eval()
    side = 2 * config.side_unit
    image = torch.rand(1, 1, side, side)
    masks = [torch.ones(1, c) for c in student.encoder_channels]
    with torch.no_grad():
        assert torch.equal(student(image, masks), student(image))
        features = student.encode(image)
        assert [f.shape[1] for f in features] == list(student.encoder_channels)
        masks[-1][0, 3] = 0
        changed = [f.clone() for f in features]
        changed[-1][0, 3] = 0
        assert torch.equal(student.decode(changed, (side, side)), student(image, masks))
        assert not torch.equal(student(image, masks), student(image))


def test_all_levels_of_a_vit_drop_the_same_channels() -> None:
    torch.manual_seed(0)
    student = models.build(DPT, 2).eval()
    assert student.mask_channels == student.encoder_channels[:1]
    image = torch.rand(1, 1, 28, 28)
    (mask,) = (torch.bernoulli(torch.full((1, c), 0.5)) * 2 for c in student.mask_channels)
    with torch.no_grad():
        every = student(image, [mask] * len(student.encoder_channels))
        assert torch.equal(student(image, [mask]), every)
        assert not torch.equal(every, student(image))


@BOTH
def test_a_student_overfits_one_image(config: StudentConfig) -> None:
    torch.manual_seed(0)
    student = models.build(config, 2)
    labels = torch.zeros(1, 56, 56, dtype=torch.long)
    labels[:, 8:28, 8:28], labels[:, 34:50, 12:50] = 1, 2
    image = labels[:, None].float() / 2
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        losses.supervised_loss(student(image), labels).backward()
        optimizer.step()
    student.train()
    with torch.no_grad():
        predicted = student(image).argmax(dim=1)
    for value in (1, 2):
        a, b = predicted == value, labels == value
        assert 2 * int((a & b).sum()) / int(a.sum() + b.sum()) > 0.9


def test_published_weights_are_loaded_and_set_the_sizes(tmp_path: Path) -> None:
    torch.manual_seed(1)
    published = Dinov2Model(
        Dinov2Config(hidden_size=32, num_hidden_layers=8, num_attention_heads=2, image_size=70)
    ).eval()
    published.save_pretrained(tmp_path)
    config = DptStudentConfig(
        kind="dinov2-dpt",
        pretrained=tmp_path,
        neck_channels=DPT.neck_channels,
        fusion_channels=DPT.fusion_channels,
    )
    student = DptStudent(config, 2).eval()
    assert student.encoder_channels == (32, 32, 32, 32)
    image = torch.rand(1, 1, 42, 42)
    normal = (image.expand(-1, 3, -1, -1) - student.mean) / student.std
    with torch.no_grad():
        last = student.encode(image)[-1]
        expected = published(normal).last_hidden_state
    assert torch.allclose(last.transpose(1, 2), expected, atol=1e-5)


def test_a_run_predicts_where_its_pretrained_folder_is_not(tmp_path: Path) -> None:
    shape = Dinov2Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=70,
        mlp_ratio=2,
        use_swiglu_ffn=True,
    )
    Dinov2Model(shape).save_pretrained(tmp_path / "published")
    config = small_config(write_dataset(tmp_path / "data"), steps=2)
    student = dataclasses.replace(DPT, pretrained=Path("published"))
    data = dataclasses.replace(config.data, size=28)
    content = to_dict(dataclasses.replace(config, data=data, student=student))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    run = tmp_path / "run"
    trainer = Trainer(load(tmp_path / "config.yaml"), run)
    trainer.run()
    (tmp_path / "published").rename(tmp_path / "elsewhere")
    kept = load(run / "config.yaml")
    image = torch.rand(1, 1, 28, 28)
    load_student(run, kept)
    found = load_student(run, kept, "last").student
    expected = models.probabilities(trainer.teacher.model, image)
    assert torch.equal(models.probabilities(found, image), expected)
    moved = dataclasses.replace(student, pretrained=tmp_path / "elsewhere")
    Trainer(dataclasses.replace(kept, student=moved), run).prepare()
    shape.hidden_act = "relu"
    Dinov2Model(shape).save_pretrained(tmp_path / "other")
    other = dataclasses.replace(student, pretrained=tmp_path / "other")
    with pytest.raises(StateError, match=r'student\.backbone\.hidden_act: "relu" now'):
        Trainer(dataclasses.replace(kept, student=other), run).prepare()


def test_a_folder_without_weights_is_an_error_that_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"student\.pretrained"):
        models.build(DptStudentConfig(kind="dinov2-dpt", pretrained=tmp_path), 2)


def test_published_weights_of_other_patches_are_refused_with_the_fix(tmp_path: Path) -> None:
    shape = Dinov2Config(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=64, patch_size=16
    )
    Dinov2Model(shape).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"student\.patch_size: 14.*set it to 16"):
        models.build(DptStudentConfig(kind="dinov2-dpt", pretrained=tmp_path), 2)


@pytest.mark.parametrize(
    ("student", "size", "nearest"),
    [
        ({"kind": "dinov2-dpt"}, 128, "multiple of 14 for dinov2-dpt; nearest: 126 or 140"),
        ({"kind": "dinov2-dpt"}, 5, "nearest: 14$"),
        ({"kind": "dinov2-dpt", "patch_size": 16}, 126, "nearest: 112 or 128"),
        ({"kind": "unet"}, 126, "multiple of 16 for unet; nearest: 112 or 128"),
        ({}, 0, "nearest: 16$"),
        ({}, -16, "nearest: 16$"),
    ],
)
def test_a_size_that_does_not_fit_the_student_is_refused_with_the_nearest(
    student: dict[str, object], size: int, nearest: str
) -> None:
    content = {"data": {"root": ".", "classes": ["disc"], "size": size}, "student": student}
    with pytest.raises(ConfigError, match=f"data.size: {size}, .*{nearest}"):
        parse(content)


def test_the_kind_chooses_the_student_and_may_be_left_out() -> None:
    data = {"root": ".", "classes": ["disc"], "size": 112}
    small = {"channels": [4, 4, 8, 8, 8, 4]}
    assert parse({"data": data, "student": small}).student == UNET
    found = parse({"data": data, "student": {"kind": "dinov2-dpt", "num_layers": 4}}).student
    assert isinstance(found, DptStudentConfig)
    with pytest.raises(ConfigError, match="student"):
        parse({"data": data, "student": {"kind": "resnet"}})
    with pytest.raises(ConfigError, match="channels"):
        parse({"data": data, "student": {"kind": "dinov2-dpt", "channels": [1]}})
