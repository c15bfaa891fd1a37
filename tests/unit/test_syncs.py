"""No step of the model waits for a GPU while it trains, and all it holds follows its device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from support import tiny_model
from support_syncs import counted_ops, on_fake_cuda
from vessa_server.model.preprocess import normalise, overlay, vlm_view
from vessa_server.model.vessa import Conditioned, Decoded, Vessa


def _all_steps(model: Vessa, device: str) -> tuple[Decoded, Tensor]:
    """Steps 1 to 5 of two images and three pairs with two templates each, and a loss."""
    config = model.config
    size = config.vlm.image_size
    image = torch.rand(2, 3, config.image_size, config.image_size, device=device)
    labels = (image[:, 0] > 0.5).long()
    image_P = torch.arange(3, device=device) % 2
    prompt = torch.arange(60, device=device).view(3, 20)
    mask = torch.ones_like(prompt)
    mask[0, :4] = 0
    answer = torch.arange(15, device=device).view(3, 5)
    features = model.encode_image(normalise(image, config), vlm_view(image, size))
    shown_R = torch.cat([image_P, image_P])
    templates = model.encode_template(
        features.select(shown_R), (labels[shown_R, None] > 0).to(image.dtype)
    )
    scores = model.matcher.retrieval_scores(features.match_BDHW, templates.embedding_K2D)
    seen = model.reasoner.see(vlm_view(overlay(image, labels), size)).select(image_P)
    prefix = model.reasoner.prefix(prompt, mask, seen)
    reasoned = model.reason(prefix, features, image_P, answer)
    matched = model.match(features, image_P, templates)
    conditioned = Conditioned(
        top_PDHW=model.remember(features, image_P, templates),
        prior_P1HW=matched.prior_P1HW,
        points_PN2=matched.points_PN2,
        labels_PN=matched.labels_PN,
        seg_P1D=reasoned.seg_P1D,
        seg_map_P1HW=reasoned.seg_map_P1HW,
    )
    side = config.image_size // 2
    student = torch.rand(3, 1, side, side, device=device)
    decoded = model.decode(features, image_P, conditioned, student, image_P > 0)
    total = decoded.class_logits().mean() + decoded.iou_P.mean() + reasoned.loss + scores.mean()
    return decoded, total + matched.prior_P1HW.mean()


@pytest.mark.parametrize("bf16", [False, True])
def test_training_reads_nothing_back(bf16: bool) -> None:
    model = tiny_model().train()
    _all_steps(model, "cpu")  # constants are made once
    with counted_ops() as ops:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            _, total = _all_steps(model, "cpu")
        total.backward()
    assert ops.calls["aten.convolution_backward"] > 0
    assert not ops.syncs
    assert all(p.grad is not None for p in model.reasoner.vlm.model.visual.parameters())


@pytest.mark.parametrize("bf16", [False, True])
def test_a_model_on_cuda_has_nothing_left_on_the_cpu(bf16: bool) -> None:
    model = tiny_model().train()
    with on_fake_cuda(model, bf16=bf16):
        _all_steps(model, "cuda")  # constants and rotary frequencies are sent once
        with counted_ops() as ops:
            decoded, total = _all_steps(model, "cuda")
        assert {decoded.logits_P1HW.device.type, total.device.type} == {"cuda"}
        assert decoded.logits_P1HW.dtype == total.dtype == torch.float32
        assert ops.calls["aten.convolution"] > 0
        assert not ops.syncs


@pytest.mark.parametrize(
    ("wait", "name"),
    [
        (lambda x: float(x.sum()), "aten._local_scalar_dense"),
        (lambda x: bool((x > 0).all()), "aten._local_scalar_dense"),
        (lambda x: x[x > 0], "aten.index"),
        (lambda x: x.masked_select(x > 0), "aten.masked_select"),
        (torch.nonzero, "aten.nonzero"),
        (lambda x: torch.equal(x, x), "aten.equal"),
        (lambda x: x + torch.tensor([1.0, 2.0, 3.0]), "aten.lift_fresh"),
        (lambda x: x.repeat_interleave(torch.arange(3)), "aten.repeat_interleave"),
    ],
)
def test_what_waits_is_counted(wait: Callable[[Tensor], object], name: str) -> None:
    with counted_ops() as ops:
        wait(torch.rand(3))
    assert ops.syncs[name] > 0


def test_copies_to_a_device_are_counted() -> None:
    with on_fake_cuda() as ops:
        torch.zeros(3).to("cuda", non_blocking=True)
        assert not ops.syncs
        torch.zeros(3).to("cuda")
        torch.zeros(3, device="cuda").cpu()
    assert ops.syncs == {"aten._to_copy": 2}
