"""Methods of semi-supervised training against plain reference computations."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from ssl_trainer import methods, schedule
from ssl_trainer.config import (
    AssistantConfig,
    BcpConfig,
    ConfigError,
    CpsConfig,
    DataConfig,
    Method,
    TrainConfig,
    UniMatchConfig,
    parse,
    to_dict,
)
from ssl_trainer.data.batches import LabelledBatch, UnlabelledBatch
from ssl_trainer.data.frame import Roi, WeakTransform, grid, theta
from ssl_trainer.data.slices import Slice
from ssl_trainer.methods import bcp, cps, mean_teacher
from ssl_trainer.models import predict_probabilities
from ssl_trainer.training.state import STATE_FILE, StateError
from ssl_trainer.training.trainer import Trainer
from trainer_support import DPT, UNET, same, write_case, write_dataset
from vessa_common.processes import Processes

METHODS: tuple[Method, ...] = ("unimatch", "mean-teacher", "cps", "bcp")
SIZE, CLASSES = 32, 3
Maps = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def _config(root: Path, method: Method, **changes: Any) -> TrainConfig:
    config = TrainConfig(
        data=DataConfig(root=root, classes=("disc", "bar"), labelled=("p0",), size=SIZE),
        student=UNET,
        method=method,
        regions=False,
        steps=6,
        labelled_batch=2,
        unlabelled_batch=2,
        precision="fp32",
        validate_every=3,
        checkpoint_every=2,
    )
    return replace(config, **changes)


def _softmax(logits_BCHW: Tensor) -> Maps:
    values = np.exp(logits_BCHW.detach().numpy().astype(np.float64))
    out: Maps = values / values.sum(axis=1, keepdims=True)
    return out


def _passes(student: torch.nn.Module, *images_B1HW: Tensor) -> Maps:
    """Probabilities of batches that do not see each other, one after the other."""
    student = copy.deepcopy(student)
    return np.concatenate([_softmax(student(images)) for images in images_B1HW])


def _entropy(p_BCHW: Maps, labels_BHW: Tensor) -> Maps:
    out: Maps = -np.log(np.take_along_axis(p_BCHW, labels_BHW.numpy()[:, None], axis=1)[:, 0])
    return out


def _part(p_BCHW: Maps, labels_BHW: Tensor, where_BHW: Maps) -> float:
    """Cross-entropy and Dice of a part of the pixels, halved."""
    dices = []
    for c in range(p_BCHW.shape[1]):
        p, t = p_BCHW[:, c], (labels_BHW == c).numpy()
        overlap = (p * t * where_BHW).sum()
        dices.append((2 * overlap + 1e-5) / (((p**2 + t) * where_BHW).sum() + 1e-5))
    entropy = (_entropy(p_BCHW, labels_BHW) * where_BHW).sum() / where_BHW.sum()
    return float(entropy + 1 - np.mean(dices)) / 2


def _supervised(p_BCHW: Maps, labels_BHW: Tensor) -> float:
    """Mean of cross-entropy and of the Dice loss of each image and class."""
    dices = []
    for p_CHW, labels_HW in zip(p_BCHW, labels_BHW.numpy(), strict=True):
        for c, p in enumerate(p_CHW):
            t = labels_HW == c
            dices.append((2 * (p * t).sum() + 1e-5) / (p.sum() + t.sum() + 1e-5))
    return float(_entropy(p_BCHW, labels_BHW).mean() + 1 - np.mean(dices)) / 2


def _batch(step: int, *, count: int = 2, unlabelled: bool = True) -> methods.Batch:
    """Random images; a quarter of each unlabelled view is padding."""
    generator = torch.Generator().manual_seed(step)
    images = torch.rand(2 * count, 1, SIZE, SIZE, generator=generator)
    labels = torch.randint(0, CLASSES, (count, SIZE, SIZE), generator=generator)
    item = Slice("a", np.zeros((SIZE, SIZE), np.uint8), None, "a")
    moved = WeakTransform(shift_x=0.5)
    view = grid(theta((SIZE, SIZE), Roi.whole((SIZE, SIZE)), moved), SIZE)
    return methods.Batch(
        LabelledBatch(images[:count], labels),
        UnlabelledBatch((item,) * count, torch.stack([view] * count), images[count:])
        if unlabelled
        else None,
        [],
        step,
        np.random.default_rng(step),
        logged=False,
    )


def _built(config: TrainConfig) -> methods.Method:
    torch.manual_seed(0)
    method = methods.build(config, Processes())
    with torch.no_grad():  # a teacher that is not the student
        for parameter in method.teacher.model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    method.students.train()
    return method


def test_a_ramp_rises_over_the_whole_run() -> None:
    ramp = [schedule.ramp_up(step, 100) for step in range(101)]
    assert ramp[0] == pytest.approx(math.exp(-5))
    assert ramp[50] == pytest.approx(math.exp(-1.25))
    assert ramp[100] == schedule.ramp_up(200, 100) == 1
    assert ramp == sorted(set(ramp))


def test_mean_teacher_is_the_squared_difference_to_the_teacher(tmp_path: Path) -> None:
    config = _config(tmp_path, "mean-teacher", steps=8)
    method, batch = _built(config), _batch(4)
    assert batch.unlabelled is not None
    noisy = mean_teacher.noisy(batch.unlabelled.image_B1HW, np.random.default_rng(4))
    p = _passes(method.student, batch.labelled.image_B1HW, noisy)
    target = predict_probabilities(method.teacher.model, batch.unlabelled.image_B1HW).numpy()
    errors = ((p[2:] - target) ** 2).mean(axis=1) * batch.unlabelled.inside().numpy()
    expected = _supervised(p[:2], batch.labelled.labels_BHW)
    loss, scalars = method.loss(batch)
    assert scalars["loss/supervised"] == pytest.approx(expected, rel=1e-4)
    assert scalars["loss/consistency"] == pytest.approx(errors.mean(), rel=1e-3)
    assert 0.6 < batch.unlabelled.inside().float().mean() < 0.9
    weight = 0.1 * math.exp(-5 * (1 - 4 / 8) ** 2)
    assert float(loss.detach()) == pytest.approx(expected + weight * errors.mean(), rel=1e-4)


def test_noise_is_small_and_cut_off() -> None:
    added = mean_teacher.noisy(torch.zeros(4, 1, 64, 64), np.random.default_rng(0))
    assert float(added.abs().max()) == pytest.approx(0.2)
    assert float(added.std()) == pytest.approx(0.095, abs=0.01)


def test_students_of_cps_learn_each_others_labels(tmp_path: Path) -> None:
    method, batch = _built(_config(tmp_path, "cps", cps=CpsConfig(weight=0.7))), _batch(3)
    assert batch.unlabelled is not None
    images = batch.labelled.image_B1HW, batch.unlabelled.image_B1HW
    one, other = (_passes(student, *images) for student in method.students)
    inside = batch.unlabelled.inside().numpy()
    known = sum(_supervised(p[:2], batch.labelled.labels_BHW) for p in (one, other))
    crossed = 0.0
    for own, others in ((one, other), (other, one)):
        labels = torch.from_numpy(others[2:].argmax(axis=1))
        crossed += float((_entropy(own[2:], labels) * inside).mean())
    loss, scalars = method.loss(batch)
    assert scalars["loss/supervised"] == pytest.approx(known, rel=1e-4)
    assert scalars["loss/consistency"] == pytest.approx(crossed, rel=1e-3)
    weight = 0.7 * math.exp(-5 * (1 - 3 / 6) ** 2)
    assert float(loss.detach()) == pytest.approx(known + weight * crossed, rel=1e-4)


def test_labels_of_cps_have_no_gradient() -> None:
    one = torch.randn(1, 3, 4, 4, requires_grad=True)
    other = torch.randn(1, 3, 4, 4)
    cps.cross_supervision(one, other, torch.ones(1, 4, 4, dtype=torch.bool)).backward()
    assert one.grad is not None
    softmax = torch.softmax(one.detach(), dim=1)
    target = torch.nn.functional.one_hot(other.argmax(dim=1), 3).permute(0, 3, 1, 2)
    assert torch.allclose(one.grad, (softmax - target) / 16, atol=1e-6)


def test_students_of_cps_differ_and_both_learn(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    faster = {"learning_rate": 1e-2, "labelled_augmentation": None}
    config = _config(root, "cps", steps=40, validate_every=40, **faster)
    trainer = Trainer(config, tmp_path / "run")
    one, other = (s.state_dict() for s in copy.deepcopy(trainer.method.students))
    assert not all(torch.equal(one[name], other[name]) for name in one)
    losses = []
    trainer.run(lambda step, scalars: losses.append(scalars["loss/supervised"]))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    for before, after in zip((one, other), trainer.method.students, strict=True):
        moved = [
            not torch.equal(before[name], p)
            for name, p in after.named_parameters()
            if p.requires_grad
        ]
        assert all(moved)


@pytest.mark.parametrize("step", [0, 1])
def test_bcp_begins_with_labelled_images_in_one_another(tmp_path: Path, step: int) -> None:
    method, batch = _built(_config(tmp_path, "bcp")), _batch(step, count=3)
    pasted = bcp.square(SIZE, np.random.default_rng(step)).numpy()
    images, labels = batch.labelled.image_B1HW, batch.labelled.labels_BHW
    mixed = images.clone()
    for index in range(3):
        for row, column in np.argwhere(pasted):
            mixed[index, 0, row, column] = images[index - 1, 0, row, column]
    p = _softmax(copy.deepcopy(method.student)(mixed))
    around, inside = (np.broadcast_to(part, p[:, 0].shape) for part in (~pasted, pasted))
    expected = _part(p, labels, around) + _part(p, labels[[2, 0, 1]], inside)
    loss, scalars = method.loss(batch)
    assert scalars == {"loss/supervised": float(loss.detach())}
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)


def test_bcp_then_pastes_in_both_directions(tmp_path: Path) -> None:
    method, batch = _built(_config(tmp_path, "bcp")), _batch(2, count=3)
    assert batch.unlabelled is not None
    pasted = bcp.square(SIZE, np.random.default_rng(2)).numpy()
    images, labels = batch.labelled.image_B1HW, batch.labelled.labels_BHW
    views = batch.unlabelled.image_B1HW
    taught = predict_probabilities(method.teacher.model, views).argmax(dim=1)
    pseudo = bcp.largest_components(taught, CLASSES - 1)
    assert bool((pseudo != taught).any())
    order = [2, 0, 1]
    inward, outward = views.clone(), images.clone()
    inward[:, :, pasted] = images[:, :, pasted]
    outward[:, :, pasted] = views[order][:, :, pasted]
    p = _passes(method.student, inward, outward)
    shown = batch.unlabelled.inside().numpy()
    around, inside = (np.broadcast_to(part, shown.shape) for part in (~pasted, pasted))
    known = _part(p[:3], labels, inside) + _part(p[3:], labels, around)
    guessed = _part(p[:3], pseudo, around & shown)
    guessed += _part(p[3:], pseudo[order], inside & shown[order])
    loss, scalars = method.loss(batch)
    assert scalars["loss/supervised"] == pytest.approx(known, rel=1e-4)
    assert scalars["loss/consistency"] == pytest.approx(guessed, rel=1e-4)
    assert float(loss.detach()) == pytest.approx(known + 0.5 * guessed, rel=1e-4)


@given(st.integers(16, 96), st.integers(0, 1000))
def test_what_bcp_pastes_is_a_square_of_two_thirds(size: int, seed: int) -> None:
    rows, columns = torch.nonzero(bcp.square(size, np.random.default_rng(seed)), as_tuple=True)
    side = int(2 / 3 * size)
    assert len(rows) == side**2
    assert int(rows.max() - rows.min()) + 1 == int(columns.max() - columns.min()) + 1 == side


def test_labels_of_bcp_keep_the_largest_component_of_each_class_and_image() -> None:
    first = [
        [1, 1, 0, 2, 2],
        [0, 0, 1, 0, 2],  # a corner connects
        [2, 0, 0, 0, 0],
        [0, 0, 0, 1, 1],
    ]
    second = [[0, 0, 0, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 0, 0, 0]]
    kept = bcp.largest_components(torch.tensor([first, second]), 3)
    first[2][0], first[3] = 0, [0] * 5
    second[0][4] = 0
    assert kept.tolist() == [first, second]
    assert kept.dtype == torch.long


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_the_unbroken_run_bit_for_bit(tmp_path: Path, method: Method) -> None:
    config = _config(write_dataset(tmp_path / "data"), method)
    whole = Trainer(config, tmp_path / "whole")
    began = {name: t.clone() for name, t in whole.student.named_parameters()}
    whole.run()
    trained = {name: t for name, t in whole.student.named_parameters() if t.requires_grad}
    assert not any(torch.equal(began[name], t) for name, t in trained.items())

    def stop(step: int, scalars: dict[str, float]) -> None:
        if step == 3:  # saved at 2, while BCP still pre-trains
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(config, tmp_path / "run").run(stop)
    Trainer(config, tmp_path / "run").run()
    assert same(tmp_path / "whole", tmp_path / "run")
    parts = {name.split(".")[0] for name in load_file(tmp_path / "run" / STATE_FILE)}
    networks = {"student", "teacher"} | ({"student_2"} if method == "cps" else set())
    assert parts == networks | {"optimizer"}
    assert set(whole.method.networks()) == networks


@pytest.mark.parametrize("method", METHODS[1:])
def test_a_run_does_not_go_on_by_another_method(tmp_path: Path, method: Method) -> None:
    root = write_dataset(tmp_path / "data")
    Trainer(_config(root, "unimatch", steps=1), tmp_path / "run").run()
    with pytest.raises(StateError, match=f'method: "{method}" now, "unimatch" when it began'):
        Trainer(_config(root, method, steps=1), tmp_path / "run").run()


@pytest.mark.parametrize("method", METHODS)
def test_methods_train_any_student_with_several_batches_an_update(
    tmp_path: Path, method: Method
) -> None:
    config = _config(write_dataset(tmp_path / "data"), method, steps=2, accumulate=2)
    config = replace(config, student=DPT, data=replace(config.data, size=28))
    trainer = Trainer(config, tmp_path / "run")
    rates = [group["initial_lr"] for group in trainer.optimizer.param_groups]
    assert rates == pytest.approx([5e-6, 2e-4])
    trainer.run()
    assert trainer.step == 2


@pytest.mark.parametrize("method", METHODS[1:])
def test_without_weight_labels_alone_are_learned_from(tmp_path: Path, method: Method) -> None:
    section = method.replace("-", "_")
    content = to_dict(_config(write_dataset(tmp_path / "data"), method, steps=2))
    content[section]["weight"] = 0.0
    content["bcp"]["pretraining"] = 0.0
    trainer = Trainer(parse(content), tmp_path / "run")
    assert trainer.unlabelled_sampler is None
    trainer.run(lambda step, scalars: _only_supervised(scalars))


def _only_supervised(scalars: dict[str, float]) -> None:
    assert scalars["loss/supervised"] == scalars["loss/total"]
    assert "loss/consistency" not in scalars


@pytest.mark.parametrize("method", METHODS)
def test_quality_of_pseudo_labels_is_watched(tmp_path: Path, method: Method) -> None:
    root = write_dataset(tmp_path / "data")
    for patient in (1, 2):
        write_case(root / "train", f"p{patient}_frame01", patient, labelled=True)
    config = _config(root, method, steps=3)
    data = replace(config.data, watch_quality=True)
    seen: dict[int, dict[str, float]] = {}
    Trainer(replace(config, data=data), tmp_path / "run").run(seen.__setitem__)
    assert 0 <= seen[3]["quality/teacher"] <= 1


def test_what_a_method_cannot_do_is_refused(tmp_path: Path) -> None:
    for method in METHODS[1:]:
        config = _config(tmp_path, method)
        with pytest.raises(
            ConfigError, match=f"method: {method} trains in one process, here are 2"
        ):
            methods.build(config, Processes(world=2))
        with pytest.raises(ValueError, match=f"VESSA does not help with {method}"):
            replace(config, assistant=AssistantConfig(server="localhost:1"))
    with pytest.raises(ValueError, match="unlabelled_batch: 3, expected labelled_batch, 2"):
        _config(tmp_path, "bcp", unlabelled_batch=3)
    with pytest.raises(ValueError, match=r"pretraining: 2\.0, expected a fraction"):
        BcpConfig(pretraining=2.0)
    with pytest.raises(ConfigError, match="method"):
        parse({**to_dict(_config(tmp_path, "cps")), "method": "mean_teacher"})


def test_teachers_follow_at_the_published_rate(tmp_path: Path) -> None:
    decays = {m: _built(_config(tmp_path, m)).teacher.decay for m in METHODS}
    assert decays == {"unimatch": 0.996, "mean-teacher": 0.99, "cps": 0.99, "bcp": 0.99}


def test_unimatch_learns_as_it_did(tmp_path: Path) -> None:
    """Losses of six updates."""
    sure = UniMatchConfig(confidence_threshold=0.3)
    config = _config(write_dataset(tmp_path / "data"), "unimatch", unimatch=sure)
    found: list[tuple[float, float]] = []
    Trainer(config, tmp_path / "run").run(
        lambda step, scalars: found.append(
            (scalars["loss/supervised"], scalars["loss/consistency"])
        )
    )
    assert np.array(found) == pytest.approx(np.array(LOSSES), rel=2e-3)


# Supervised, consistency.
LOSSES = [
    (1.14404, 0.74201),
    (1.12322, 0.83601),
    (1.12490, 0.82212),
    (1.10454, 0.89977),
    (1.08922, 0.87296),
    (1.09903, 0.74248),
]
