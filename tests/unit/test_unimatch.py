"""The parts of UniMatch V2 against plain reference computations."""

from __future__ import annotations

import copy
import dataclasses
import math
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from ssl_trainer import models, schedule
from ssl_trainer.assistant.assistant import PseudoLabel
from ssl_trainer.assistant.prompter import Prompter
from ssl_trainer.config import AssistantConfig
from ssl_trainer.data import batches, frame
from ssl_trainer.data.batches import UnlabelledBatch
from ssl_trainer.data.frame import Roi
from ssl_trainer.data.slices import Slice
from ssl_trainer.methods import losses
from ssl_trainer.methods.ema import EmaTeacher
from ssl_trainer.methods.unimatch.dropout import complementary_masks
from ssl_trainer.methods.unimatch.objective import strong_views
from ssl_trainer.methods.unimatch.views import Boxes, Jitter, blurred, jittered, kernels, random_box
from ssl_trainer.models import predict_probabilities
from support_syncs import counted_ops
from trainer_support import UNET, regions, single_slices, small_config, stored, transforms
from vessa_common.precision import autocast
from vessa_common.processes import BufferMean, Processes


@given(st.integers(2, 6), st.integers(0, 1000))
def test_cutmix_pastes_the_partner_inside_of_the_box(batch: int, seed: int) -> None:
    mix = Boxes.draw(batch, 16, 0.8, np.random.default_rng(seed)).cutmix(16)
    images = torch.rand(batch, 2, 16, 16, generator=torch.Generator().manual_seed(seed))
    mixed, labels = mix.mix(images), mix.mix(images[:, 0])
    for index in range(batch):
        partner = (index + mix.turn) % batch
        assert partner != index
        for row in range(16):
            for column in range(16):
                source = partner if mix.inside_BHW[index, row, column] else index
                expected = images[source, :, row, column]
                assert torch.equal(mixed[index, :, row, column], expected)
                assert labels[index, row, column] == expected[0]


def test_cutmix_happens_with_its_probability() -> None:
    rng = np.random.default_rng(0)
    boxes = [Boxes.draw(4, 32, 0.5, rng).cutmix(32) for _ in range(300)]
    drawn = [mix.inside_BHW.flatten(1).any(dim=1) for mix in boxes]
    assert abs(float(torch.stack(drawn).float().mean()) - 0.5) < 0.05
    assert not bool(Boxes.draw(4, 32, 0.0, rng).cutmix(32).inside_BHW.any())


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
        with counted_ops() as ops:
            teacher.update(step)
        assert set(ops.calls) == {"aten._foreach_lerp_", "aten._foreach_copy_"}
        decay = min(1 - 1 / (step + 1), 0.9)
        for name, value in student.state_dict().items():
            floating = value.is_floating_point()
            mixed = decay * expected[name] + (1 - decay) * value.double()
            expected[name] = mixed if floating else value.double()
    for name, value in teacher.model.state_dict().items():
        assert torch.allclose(value.double(), expected[name], atol=1e-5), name
    assert not any(p.requires_grad for p in teacher.model.parameters())


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("layer", [torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2)], ids=str)
def test_running_statistics_are_the_mean_of_those_of_the_batches(
    layer: torch.nn.Module, count: int
) -> None:
    images = [torch.randn(4, 3) for _ in range(count)]
    alone = []
    for image in images:
        own = copy.deepcopy(layer)
        own(image)
        alone.append(dict(own.named_buffers()))
    with counted_ops() as ops:
        buffers = BufferMean(layer, count)
    for image in images:
        layer(image)
        with ops:
            buffers.take()
    with ops:
        buffers.settle(Processes())
    assert bool(ops.calls) == (count > 1 and bool(list(layer.buffers())))
    for name, value in layer.named_buffers():
        if value.is_floating_point():
            mean = torch.stack([own[name] for own in alone]).mean(dim=0)
            assert torch.equal(value, mean) if count == 1 else torch.allclose(value, mean), name


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


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_teacher_has_a_share_of_vessas_labels(tmp_path: Path, share: float) -> None:
    """VESSA says 1 in the upper half and 2 in the lower one, with 0.8."""
    base = small_config(tmp_path)
    config = dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, size=16, classes=("one", "two")),
        assistant=AssistantConfig(teacher_share=share, server="x:1"),
    )
    labels, iou = np.ones((16, 16), np.uint8), 0.5
    labels[8:] = 2
    answer = PseudoLabel(
        labels=labels, confidence=np.full((16, 16), 204, np.uint8), predicted_iou=iou
    )
    item = Slice("a", np.zeros((16, 16), np.uint8), None, "a")
    grids = torch.stack([frame.grid(frame.theta((16, 16)), 16)] * 2)
    batch = UnlabelledBatch((item, item), grids, torch.zeros(2, 1, 16, 16))
    rng = np.random.default_rng(0)
    step = config.steps  # the share has grown to its end
    inputs = batch, [answer, None], _HalfSure(), (4,), config, step, rng
    views, scalars = strong_views(*inputs, logged=True)
    assert views.from_vessa is not None
    sure_half = torch.zeros(16, 16)
    sure_half[:, :8] = 1
    assert torch.equal(views.from_teacher.weight_BHW, sure_half.expand(2, -1, -1))
    # The teacher says class 1 everywhere, VESSA alone in one half; the other one was not asked.
    assert scalars["assistant/agreement"] == 0.5
    expected = torch.from_numpy(labels).long()
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


@given(roi=regions(shape=(40, 52)), transform=transforms())
def test_padding_counts_for_neither_teacher_nor_vessa(
    roi: frame.Roi, transform: frame.WeakTransform
) -> None:
    """A teacher that is sure everywhere, and a VESSA that is: only pixels of the slice count."""
    base = small_config(Path())
    config = dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, size=16),
        unimatch=dataclasses.replace(base.unimatch, confidence_threshold=0.5),
        assistant=AssistantConfig(server="x:1"),
    )
    shape = (40, 52)
    item = Slice("a", np.zeros(shape, np.uint8), None, "a")
    matrix = frame.theta(shape, roi, transform)
    batch = UnlabelledBatch((item,), frame.grid(matrix, 16)[None], torch.zeros(1, 1, 16, 16))
    answer = PseudoLabel(np.ones(shape, np.uint8), np.full(shape, 255, np.uint8), 1.0)
    rng = np.random.default_rng(0)
    views, _ = strong_views(batch, [answer], _Sure(), (4,), config, 0, rng, logged=False)
    assert views.from_vessa is not None
    for row, column in np.ndindex(16, 16):
        x, y = matrix @ [(2 * column + 1) / 16 - 1, (2 * row + 1) / 16 - 1, 1]
        beyond = max(abs(x), abs(y))
        if abs(beyond - 1) > 1e-3:
            assert float(views.from_teacher.weight_BHW[0, row, column]) == (beyond < 1)
            assert beyond < 1 or float(views.from_vessa.weight_BHW[0, row, column]) == 0


class _Sure(torch.nn.Module):
    """Sure of class 1 everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, image_B1HW: torch.Tensor) -> torch.Tensor:
        one = torch.tensor([0.0, 20.0, 0.0])[:, None, None]
        return self.scale * one.expand(len(image_B1HW), -1, *image_B1HW.shape[2:])


def test_the_teachers_share_grows_to_its_end() -> None:
    config = AssistantConfig(teacher_share=0.4, decay_end=0.5)
    shares = [schedule.teacher_share(s, 100, config) for s in (0, 25, 50, 99)]
    assert shares == pytest.approx([0, 0.2, 0.4, 0.4])


@given(st.integers(1, 300), st.floats(0.01, 3), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_the_assistants_weight_falls_as_a_cosine_to_nothing(
    steps: int, weight: float, decay_end: float
) -> None:
    config = AssistantConfig(weight=weight, decay_end=decay_end)
    weights = [schedule.assistant_weight(s, steps, config) for s in range(steps + 1)]
    last = schedule.assisted(steps, config)
    assert weights == sorted(weights, reverse=True)
    assert all(w > 0 for w in weights[:last]), "what is asked about counts"
    assert not any(weights[last:]), "and nothing else"
    assert last == math.ceil(decay_end * steps)
    if last:
        assert weights[0] == weight
    half = decay_end * steps / 2
    if half and half == int(half):
        assert weights[int(half)] == pytest.approx(weight / 2)


def test_prompts_begin_when_they_are_to() -> None:
    config = AssistantConfig(feedback_start=0.3)
    begun = [schedule.feedback(s, 100, config) for s in (0, 29, 30, 99)]
    assert begun == [False, False, True, True]
    assert schedule.poly(50, 100, 0.9) == pytest.approx(0.5**0.9)


def test_blur_is_gaussian_of_each_images_own_width() -> None:
    image = torch.rand(4, 1, 24, 30, generator=torch.Generator().manual_seed(0))
    sigmas = (0.0, 0.2, 1.3, 2.0)
    found = blurred(image, kernels(np.array(sigmas)))
    assert torch.equal(found[0], image[0])
    for index, sigma in enumerate(sigmas[1:], start=1):
        cut = max(1, math.ceil(3 * sigma)) / sigma
        expected = ndimage.gaussian_filter(
            image[index, 0].numpy(), sigma, mode="mirror", truncate=cut
        )
        assert np.abs(found[index, 0].numpy() - expected).max() < 1e-5


def test_jitter_changes_intensities_and_not_places() -> None:
    image = torch.zeros(3, 1, 16, 16)
    image[..., 8:, :] = 1
    changed = jittered(image, Jitter.draw(np.random.default_rng(1), 3))
    assert not torch.equal(changed, image)
    assert bool((changed[..., 15, :].mean() > changed[..., 0, :].mean()).all())


def test_prediction_leaves_the_mode_as_it_was() -> None:
    student = models.build(UNET, 2).train()
    probabilities = predict_probabilities(student, torch.rand(2, 1, 32, 32))
    assert student.training
    assert torch.allclose(probabilities.sum(dim=1), torch.ones(2, 32, 32), atol=1e-5)
    assert math.isfinite(float(probabilities.max()))


def test_prompts_are_what_the_model_predicted_when_they_were_begun() -> None:
    teacher = models.build(UNET, 2).eval()
    prompter = Prompter(teacher, dataclasses.replace(small_config(Path()), precision="fp32"))
    images, changed = torch.rand(2, 1, 32, 32), threading.Event()

    def canvases() -> Tensor:
        assert changed.wait(10)
        return images

    expected = (255 * predict_probabilities(teacher, images)).round()
    prompts = prompter.begin(canvases)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.zero_()
    assert not prompts.done()
    changed.set()
    assert torch.equal(prompts.result().float(), expected)
    later = prompter.begin(canvases).result()
    assert torch.equal(later, torch.full((2, 3, 32, 32), 85, dtype=torch.uint8))
    prompter.close()


def test_what_prompts_are_predicted_from_is_not_rounded() -> None:
    config = dataclasses.replace(small_config(Path()), precision="bf16")
    store = stored(single_slices(3), 32, {"1": Roi(20.0, 30.0, 24.0, 1)})
    seen: list[Tensor] = []

    def canvases() -> Tensor:
        seen.append(store.canvases([0, 1, 2]))
        return seen[0]

    prompter = Prompter(models.build(UNET, 2).eval(), config)
    prompter.begin(canvases).result()
    prompter.close()
    expected = [batches.canonical(s, 32, store.roi(s)) for s in store.slices]
    assert torch.allclose(seen[0], torch.stack(expected), atol=1e-3)
    with autocast(torch.device("cpu"), "bf16"):
        assert torch.equal(store.canvases([0, 1, 2]), seen[0])


def test_predicting_prompts_does_not_change_gradients() -> None:
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
                prompter.begin(lambda: images[:1]).result()
            loss = loss + student(images.flip(-1)).float().square().sum()
        loss.backward()
        gradients.append([p.grad.clone() for p in student.parameters() if p.grad is not None])
    prompter.close()
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
