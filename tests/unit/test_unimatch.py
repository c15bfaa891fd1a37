"""The parts of UniMatch V2 against plain reference computations."""

from __future__ import annotations

import dataclasses
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from ssl_trainer import models
from ssl_trainer.assistant.assistant import PseudoLabel
from ssl_trainer.assistant.trust import PATIENCE, Trust
from ssl_trainer.config import AssistantConfig, UniMatchConfig
from ssl_trainer.data import frame
from ssl_trainer.data.batches import UnlabelledBatch
from ssl_trainer.data.cases import Slice
from ssl_trainer.models import predict_probabilities
from ssl_trainer.unimatch import losses, schedule
from ssl_trainer.unimatch.dropout import complementary_masks
from ssl_trainer.unimatch.ema import EmaTeacher
from ssl_trainer.unimatch.objective import strong_views
from ssl_trainer.unimatch.prompter import Prompter
from ssl_trainer.unimatch.views import CutMix, gaussian_blur, jitter, random_box
from trainer_support import UNET, small_config
from vessa_common.precision import autocast


@given(st.integers(2, 6), st.integers(0, 1000))
def test_cutmix_pastes_the_partner_inside_of_the_box(batch: int, seed: int) -> None:
    mix = CutMix.draw(batch, 16, 0.8, np.random.default_rng(seed))
    images = torch.rand(batch, 2, 16, 16, generator=torch.Generator().manual_seed(seed))
    mixed, labels = mix.mix(images), mix.mix(images[:, 0])
    for index in range(batch):
        partner = int(mix.partner_B[index])
        assert partner != index
        for row in range(16):
            for column in range(16):
                source = partner if mix.inside_BHW[index, row, column] else index
                expected = images[source, :, row, column]
                assert torch.equal(mixed[index, :, row, column], expected)
                assert labels[index, row, column] == expected[0]


def test_cutmix_happens_with_its_probability() -> None:
    rng = np.random.default_rng(0)
    drawn = [CutMix.draw(4, 32, 0.5, rng).inside_BHW.flatten(1).any(dim=1) for _ in range(300)]
    assert abs(float(torch.stack(drawn).float().mean()) - 0.5) < 0.05
    assert not bool(CutMix.draw(4, 32, 0.0, rng).inside_BHW.any())


@given(st.integers(8, 200), st.integers(0, 1000))
def test_boxes_lie_inside_and_have_their_area(size: int, seed: int) -> None:
    top, left, height, width = random_box(size, np.random.default_rng(seed))
    assert top >= 0
    assert left >= 0
    assert height >= 1
    assert width >= 1
    assert top + height <= size
    assert left + width <= size
    assert height * width <= 0.4 * size**2 + size + 1


@given(st.integers(1, 12), st.floats(0, 0.99), st.integers(0, 1000))
def test_dropout_masks_complement_each_other(batch: int, probability: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = complementary_masks(batch, (6, 10), probability, generator)
    untouched = None
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one + other, torch.full_like(one, 2))
        assert set(one.unique().tolist()) <= {0.0, 1.0, 2.0}
        rows = (one == 1).all(dim=1)
        assert bool((rows == (one == 1).any(dim=1)).all()), "an image is dropped whole or not"
        assert untouched is None or torch.equal(rows, untouched), "the same images in all levels"
        untouched = rows
    assert untouched is not None
    assert int(untouched.sum()) == int(batch * (1 - probability))


def test_dropped_channels_do_not_reach_the_logits() -> None:
    torch.manual_seed(0)
    student = models.build(UNET, 2).eval()
    image = torch.rand(1, 1, 32, 32)
    ones = [torch.ones(1, c) for c in student.encoder_channels]
    assert torch.equal(student(image, ones), student(image))
    features = student.encode(image)
    ones[4][0, 3] = 0
    changed = [f.clone() for f in features]
    changed[4][0, 3] = 1e3
    masked = [f * m[:, :, None, None] for f, m in zip(changed, ones, strict=True)]
    assert torch.equal(student.decode(masked, (32, 32)), student(image, ones))


def test_the_teacher_is_the_moving_average_of_the_student() -> None:
    torch.manual_seed(0)
    student = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    teacher = EmaTeacher(student, decay=0.9)
    expected = {n: t.clone().double() for n, t in student.state_dict().items()}
    for step in range(15):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter))
        student(torch.randn(4, 3))
        teacher.update(student, step)
        decay = min(1 - 1 / (step + 1), 0.9)
        for name, value in student.state_dict().items():
            floating = value.is_floating_point()
            mixed = decay * expected[name] + (1 - decay) * value.double()
            expected[name] = mixed if floating else value.double()
    for name, value in teacher.model.state_dict().items():
        assert torch.allclose(value.double(), expected[name], atol=1e-5), name
    assert not any(p.requires_grad for p in teacher.model.parameters())


def _case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 4, 5, generator=generator)
    labels = torch.randint(0, 3, (2, 4, 5), generator=generator)
    return logits, labels, torch.rand(2, 4, 5, generator=generator)


def _entropies(
    logits: torch.Tensor, labels: torch.Tensor
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    values = logits.numpy().astype(np.float64)
    log_p = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    picked = np.take_along_axis(log_p, labels.numpy()[:, None], axis=1)[:, 0]
    out: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = -picked
    return out


def test_supervised_loss_is_half_cross_entropy_half_dice() -> None:
    logits, labels, _ = _case()
    p = torch.softmax(logits, dim=1).numpy().astype(np.float64)
    dices = []
    for b in range(2):
        for c in range(3):
            t = (labels[b] == c).numpy()
            dices.append(1 - (2 * (p[b, c] * t).sum() + 1e-5) / (p[b, c].sum() + t.sum() + 1e-5))
    expected = (_entropies(logits, labels).mean() + np.mean(dices)) / 2
    assert float(losses.supervised_loss(logits, labels)) == pytest.approx(expected, abs=1e-5)


def test_cross_entropy_of_unlabelled_views_is_weighted_by_pixel() -> None:
    logits, labels, weight = _case(2)
    expected = (_entropies(logits, labels) * weight.numpy()).mean()
    found = losses.weighted_cross_entropy(torch.log_softmax(logits, 1), labels, weight)
    assert float(found) == pytest.approx(expected, abs=1e-6)


def test_dice_of_unlabelled_views_is_weighted_by_pixel() -> None:
    logits, labels, weight = _case(3)
    p = torch.softmax(logits, dim=1).numpy().astype(np.float64)
    w = weight.numpy().astype(np.float64)
    dices = []
    for c in range(3):
        t = (labels == c).numpy()
        overlap, total = (w * p[:, c] * t).sum(), (w * (p[:, c] ** 2 + t)).sum()
        dices.append(1 - (2 * overlap + 1e-5) / (total + 1e-5))
    found = losses.weighted_dice(torch.log_softmax(logits, 1), labels, weight)
    assert float(found) == pytest.approx(np.mean(dices), abs=1e-6)
    sure = 50 * torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2).float()
    found = losses.weighted_dice(torch.log_softmax(sure, 1), labels, weight)
    assert float(found) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", sorted(losses.UNLABELLED))
def test_pixels_of_weight_zero_do_not_matter(name: str) -> None:
    logits, labels, weight = _case(4)
    weight = losses.confident(weight, 0.5)
    assert 0 < float(weight.mean()) < 1
    other = torch.where(weight[:, None] > 0, logits, torch.flip(logits, (1,)))
    one, two = (
        float(losses.UNLABELLED[name](torch.log_softmax(maps, 1), labels, weight))
        for maps in (logits, other)
    )
    assert one == pytest.approx(two)


def test_confidence_becomes_weight() -> None:
    assert losses.pixel_weight(torch.tensor([0.2, 0.5, 0.75, 1.0])).tolist() == [0, 0, 0.5, 1]
    assert losses.confident(torch.tensor([0.94, 0.95, 1.0]), 0.95).tolist() == [0, 1, 1]


class _HalfSure(torch.nn.Module):
    """Sure of class 1 in the left half of an image, and unsure of it in the right half."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, image_B1HW: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(image_B1HW), 3, 16, 16)
        logits[:, 1, :, :8], logits[:, 1, :, 8:] = 20.0, 0.1
        return logits * self.scale


@pytest.mark.parametrize(("share", "iou"), [(0.0, 0.5), (0.5, 0.5), (0.5, 1.0)])
def test_the_teacher_has_a_share_of_vessas_labels(tmp_path: Path, share: float, iou: float) -> None:
    """VESSA says 1 in the upper half and 2 in the lower one, with 0.8; sure, it overrules."""
    base = small_config(tmp_path)
    config = dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, size=16, classes=("one", "two")),
        assistant=AssistantConfig(teacher_share=share, server="x:1"),
    )
    told = np.ones((16, 16), np.uint8)
    told[8:] = 2
    answer = PseudoLabel(
        labels=told, confidence=np.full((16, 16), 204, np.uint8), predicted_iou=iou
    )
    item = Slice("a", np.zeros((16, 16), np.uint8), None, "a")
    grids = (frame.grid(frame.theta((16, 16)), 16),) * 2
    batch = UnlabelledBatch((item, item), grids, torch.zeros(2, 1, 16, 16))
    rng = np.random.default_rng(0)
    step = config.steps  # the share has grown to its end
    inputs = batch, [answer, None], _HalfSure(), (4,), config, step, rng
    views, scalars = strong_views(*inputs, assistant_weight=1.0, logged=True)
    assert views.from_vessa is not None
    sure_half = torch.zeros(16, 16)
    sure_half[:, :8] = 1
    overruled = iou == 1
    assert torch.equal(views.from_teacher.weight_BHW[0], 0 * sure_half if overruled else sure_half)
    assert torch.equal(views.from_teacher.weight_BHW[1], sure_half), "no answer"
    less, _ = strong_views(*inputs, assistant_weight=0.25, logged=False)
    expected_half = (0.75 if overruled else 1.0) * sure_half
    assert torch.equal(less.from_teacher.weight_BHW[0], expected_half), "as far as VESSA counts"
    share = 0 if overruled else share
    # The teacher says class 1 everywhere; what was not answered does not count.
    assert scalars["assistant/agreement"] == (0.75 if share else 0.5)
    assert scalars["assistant/answered"] == 0.5
    expected = torch.from_numpy(told).long()
    if share:
        expected[8:, :8] = 1
    assert torch.equal(views.from_vessa.labels_BHW[0], expected)
    # 2 p - 1 of the winner: upper and lower half, in the teacher's sure and in its unsure half.
    unsure = torch.softmax(torch.tensor([0.0, 0.1, 0.0]), dim=0)
    left = [0.9, 0.6] if share else [0.8, 0.8]
    right = [0.4 + 0.5 * float(unsure[label]) if share else 0.8 for label in (1, 2)]
    for rows, *sure in ((slice(8), left[0], right[0]), (slice(8, 16), left[1], right[1])):
        for columns, p in zip((slice(8), slice(8, 16)), sure, strict=True):
            weight = views.from_vessa.weight_BHW[0, rows, columns]
            assert weight.numpy() == pytest.approx(iou * (2 * p - 1), abs=1e-5)
    assert not bool(views.from_vessa.weight_BHW[1].any()), "no answer"


def test_the_teachers_share_grows_to_its_end() -> None:
    config = AssistantConfig(teacher_share=0.4, teacher_share_at=0.5)
    shares = [schedule.teacher_share(s, 100, config) for s in (0, 25, 50, 99)]
    assert shares == pytest.approx([0, 0.2, 0.4, 0.4])


def test_the_assistants_weight_falls_and_feedback_begins_when_told() -> None:
    config = AssistantConfig(weight_start=2.0, weight_end=0.5, decay_end=0.5, feedback_start=0.3)
    weights = [schedule.assistant_weight(s, 100, config) for s in range(100)]
    assert weights[0] == 2.0
    assert weights == sorted(weights, reverse=True)
    assert weights[50:] == [0.5] * 50
    assert weights[25] == pytest.approx(1.25)
    assert [schedule.feedback(s, 100, config) for s in (0, 29, 30, 99)] == [
        False,
        False,
        True,
        True,
    ]
    assert schedule.poly(50, 100, 0.9) == pytest.approx(0.5**0.9)


@pytest.mark.parametrize(
    ("end", "patients", "last"), [("auto", 1, 0.7), ("auto", 2, 0.0), (0.2, 1, 0.2), (1, 7, 1.0)]
)
def test_with_one_annotated_patient_the_assistants_weight_does_not_fall(
    end: Any, patients: int, last: float
) -> None:
    config = AssistantConfig(weight_start=0.7, weight_end=end, decay_end=1.0)
    settled = config.settled(patients, validated=False)
    assert schedule.assistant_weight(0, 100, settled) == 0.7
    assert schedule.assistant_weight(100, 100, settled) == last
    assert settled.settled(3 - min(patients, 2), validated=False) == settled, "settled once"
    validated = config.settled(patients, validated=True)
    assert validated.weight_end == end, "validation cases are to tell"


@given(falls_from=st.integers(1, 1000), steps=st.integers(1, 1000), ahead=st.integers(1, 20))
def test_a_weight_that_stays_falls_once_vessa_is_of_no_use(
    falls_from: int, steps: int, ahead: int
) -> None:
    config = AssistantConfig(weight_start=0.7, weight_end="auto", ahead=ahead)
    assert schedule.assistant_weight(falls_from, steps, config) == 0.7
    over = [
        schedule.assistant_weight(falls_from + s, steps, config, falls_from)
        for s in range(max(steps // 5, ahead) + 2)
    ]
    assert over[0] == pytest.approx(0.7)
    assert over == sorted(over, reverse=True)
    assert min(over[:ahead]) > 0, "what was asked about counts"
    assert over[-1] == 0


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=12))
def test_trust_is_lost_after_two_lost_comparisons_in_a_row(
    scores: list[tuple[float, float]],
) -> None:
    trust = Trust()
    for step, (teacher, vessa) in enumerate(scores, start=1):
        trust = trust.after(step, teacher=teacher, vessa=vessa)
        recent = scores[max(0, step - PATIENCE) : step]
        expected = len(recent) == PATIENCE and all(t >= v for t, v in recent)
        assert (trust.falls_from == step) == expected


def test_the_teachers_weight_rises_to_its_own() -> None:
    weights = [
        schedule.consistency_weight(s, 100, UniMatchConfig(weight=2.0, ramp_up=0.4))
        for s in range(100)
    ]
    assert weights[0] == pytest.approx(2 * math.exp(-5))
    assert weights[20] == pytest.approx(2 * math.exp(-1.25))
    assert weights == sorted(weights)
    assert weights[40:] == [2.0] * 60
    assert schedule.consistency_weight(0, 100, UniMatchConfig(weight=0.5)) == 0.5


def test_blur_is_gaussian() -> None:
    image = torch.rand(1, 24, 24, generator=torch.Generator().manual_seed(0))
    expected = ndimage.gaussian_filter(image[0].numpy(), 1.3, mode="mirror", truncate=4 / 1.3)
    assert np.abs(gaussian_blur(image, 1.3)[0].numpy() - expected).max() < 1e-4


def test_jitter_changes_intensities_and_not_places() -> None:
    image = torch.zeros(3, 1, 16, 16)
    image[..., 8:, :] = 1
    changed = jitter(image, np.random.default_rng(1))
    assert not torch.equal(changed, image)
    assert bool((changed[..., 15, :].mean() > changed[..., 0, :].mean()).all())


def test_prediction_leaves_the_mode_as_it_was() -> None:
    student = models.build(UNET, 2).train()
    probabilities = predict_probabilities(student, torch.rand(2, 1, 32, 32))
    assert student.training
    assert torch.allclose(probabilities.sum(dim=1), torch.ones(2, 32, 32), atol=1e-5)
    assert math.isfinite(float(probabilities.max()))


def test_vessa_is_told_what_the_model_predicted_when_asked() -> None:
    teacher = models.build(UNET, 2).eval()
    prompter = Prompter(teacher, dataclasses.replace(small_config(Path()), precision="fp32"))
    images, changed = torch.rand(2, 1, 32, 32), threading.Event()

    def canvases() -> dict[int, Tensor]:
        assert changed.wait(10)
        return {0: images[0], 2: images[1]}

    expected = (255 * predict_probabilities(teacher, images)).round()
    told = prompter.begin(teacher, canvases, 3)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.zero_()
    assert not told.done()
    changed.set()
    assert torch.equal(told.result()[[0, 2]].float(), expected)
    assert not bool(told.result()[1].any())
    later = prompter.begin(teacher, canvases, 3).result()
    assert torch.equal(later[0], torch.full((3, 32, 32), 85, dtype=torch.uint8))
    prompter.close()


def test_predicting_what_vessa_is_told_does_not_change_gradients() -> None:
    """Both passes of the student share casts of its weights, which leaving autocast clears."""
    student = models.build(UNET, 2).eval()
    config = dataclasses.replace(small_config(Path()), precision="bf16")
    prompter = Prompter(student, config)
    images = torch.rand(2, 1, 32, 32)
    gradients = []
    for beside in (False, True):
        student.zero_grad()
        with autocast(torch.device("cpu"), "bf16"):
            loss = student(images).float().square().sum()
            if beside:
                prompter.begin(student, lambda: {0: images[0]}, 1).result()
            loss = loss + student(images.flip(-1)).float().square().sum()
        loss.backward()
        gradients.append([p.grad.clone() for p in student.parameters() if p.grad is not None])
    prompter.close()
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
