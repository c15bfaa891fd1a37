"""The shipped weights in bf16: nothing overflows where it did, and fp32 stays what it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.position_encoding import PositionEmbeddingRandom
from torch import Tensor

from vessa_server.matching.template_matcher import MatchPrompts, TemplateMatcher
from vessa_server.model import checkpoint
from vessa_server.model.position_encoding import PositionEncoding, RandomFrequencies
from vessa_server.model.preprocess import normalise, overlay, vlm_view
from vessa_server.model.presets import preset
from vessa_server.model.refinement_head import halved
from vessa_server.model.vessa import Conditioned, Decoded, Reasoned, Vessa

SIDE = preset("nano").image_size
WEIGHTS = Path(checkpoint.__file__).resolve().parents[3] / "weights" / "nano"


@pytest.fixture(scope="module")
def nano() -> Vessa:
    return checkpoint.load(preset("nano"), WEIGHTS)


def _all_steps(
    model: Vessa, image: Tensor, mask: Tensor
) -> tuple[MatchPrompts, Reasoned, Decoded, Tensor]:
    """One image as its own template; the last is what the matching features are."""
    config = model.config
    image_P = torch.tensor([0])
    features = model.encode_image(normalise(image, config), vlm_view(image, config.vlm.image_size))
    templates = model.encode_template(features, mask)
    seen = model.reasoner.see(vlm_view(overlay(image, mask[:, 0]), config.vlm.image_size))
    ids, attention = model.reasoner.tokenize(["Segment the heart, the red area."])
    prefix = model.reasoner.prefix(ids, attention, seen)
    reasoned = model.reason(prefix, features, image_P, model.reasoner.answer_ids([" absent"]))
    matched = model.match(features, image_P, templates)
    conditioned = Conditioned(
        top_PDHW=model.remember(features, image_P, templates),
        prior_P1HW=matched.prior_P1HW,
        points_PN2=matched.points_PN2,
        labels_PN=matched.labels_PN,
        seg_P1D=reasoned.seg_P1D,
        seg_map_P1HW=reasoned.seg_map_P1HW,
    )
    student = torch.zeros(1, 1, SIDE // 2, SIDE // 2)
    student[..., 20:40, 20:40] = 1
    decoded = model.decode(features, image_P, conditioned, student, torch.tensor([True]))
    return matched, reasoned, decoded, features.match_BDHW


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("whole", [True, False])
def test_a_certain_prior_has_finite_logits_and_gradients_in_bf16(
    nano: Vessa, image: Tensor, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., : SIDE if whole else SIDE // 2] = 1
    nano.zero_grad()
    # As sharp as matching may become: half of a template then gives a prior of 1, too.
    monkeypatch.setattr(nano.matcher.log_scale, "data", torch.tensor(100.0).log())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        matched, reasoned, decoded, match = _all_steps(nano, image, mask)
    prior = matched.prior_P1HW
    assert float(prior.detach().bfloat16().max()) == 1.0, (
        "the test needs a prior that bf16 rounds to 1"
    )
    for value in (prior, match, reasoned.seg_map_P1HW, reasoned.loss):
        assert value.dtype == torch.float32
    for value in (decoded.logits_P1HW, decoded.iou_P, decoded.presence_P):
        assert value.dtype == torch.float32
        assert bool(value.isfinite().all())
    total = decoded.class_logits().square().mean() + decoded.iou_P.sum() + reasoned.loss
    (total + torch.logit(prior, eps=1e-4).mean() + reasoned.seg_map_P1HW.mean()).backward()
    gradients = [p.grad for p in nano.parameters() if p.grad is not None]
    assert len(gradients) > 200
    assert all(bool(g.isfinite().all()) for g in gradients)


@torch.no_grad()
def test_bf16_decides_nearly_as_fp32(nano: Vessa, image: Tensor) -> None:
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., 30:90, 40:100] = 1
    _, _, exact, _ = _all_steps(nano, image, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, _, rounded, _ = _all_steps(nano, image, mask)
    differing = (exact.logits_P1HW > 0) != (rounded.logits_P1HW > 0)
    assert float(differing.float().mean()) < 0.02
    assert float(exact.iou_P) == pytest.approx(float(rounded.iou_P), abs=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_models_decide_nearly_as_fp32(
    nano: Vessa, image: Tensor, dtype: torch.dtype
) -> None:
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., 30:90, 40:100] = 1
    exact_match, exact_reading, exact, _ = _all_steps(nano, image, mask)
    half = checkpoint.load(preset("nano"), WEIGHTS, dtype=dtype)
    assert half.dtype == dtype
    matched, reasoned, decoded, match = _all_steps(half, image, mask)
    for value in (decoded.logits_P1HW, decoded.iou_P, decoded.presence_P):
        assert value.dtype == torch.float32
    for value in (matched.prior_P1HW, reasoned.seg_map_P1HW, match):
        assert value.dtype == torch.float32, "what eight bits are too few for"
    assert torch.allclose(matched.prior_P1HW, exact_match.prior_P1HW, atol=0.1)
    assert float(exact_reading.loss) == pytest.approx(float(reasoned.loss), abs=0.1)
    differing = (exact.logits_P1HW > 0) != (decoded.logits_P1HW > 0)
    assert float(differing.float().mean()) < 0.01
    assert float(exact.iou_P) == pytest.approx(float(decoded.iou_P), abs=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_what_is_kept_has_the_dtype_of_the_model(image: Tensor, dtype: torch.dtype) -> None:
    model = checkpoint.load(preset("nano"), WEIGHTS, dtype=dtype)
    view = vlm_view(image, model.config.vlm.image_size)
    prefix = model.reasoner.prefix(
        *model.reasoner.tokenize(["the heart"]), model.reasoner.see(view)
    )
    assert prefix.keys_PLGTD.dtype == prefix.values_PLGTD.dtype == dtype
    numbers = prefix.keys_PLGTD.numel() + prefix.values_PLGTD.numel()
    places = prefix.mask_PT.numel() + prefix.next_position_P.numel()
    assert prefix.nbytes == numbers * dtype.itemsize + places * 8
    features = model.encode_image(normalise(image, model.config), view)
    kept = features.to_tensors() | model.encode_template(features, image[:, :1]).to_tensors()
    narrow = {name for name, tensor in kept.items() if tensor.dtype == dtype}
    # Unit lengths, and shares of pixels, are in fp32.
    assert set(kept) - narrow <= {"match_BDHW", "match_KDHW", "mask_K1HW", "embedding_K2D"}


@torch.no_grad()
def test_matching_is_the_same_under_autocast() -> None:
    torch.manual_seed(0)
    matcher = TemplateMatcher(temperature_init=0.02, num_positive_points=2, stride=8)
    query, template = torch.randn(2, 16, 8, 8), torch.randn(2, 3, 16, 8, 8)
    masks = (torch.rand(2, 3, 1, 8, 8) > 0.5).float()
    described = (template.flatten(0, 1), masks.flatten(0, 1))

    def results() -> list[Tensor]:
        prior = matcher.propagate(query, template, masks)
        embedding = matcher.describe(*described)
        pairs = embedding.unflatten(0, (2, 3))
        return [
            prior,
            matcher.prompts(prior).points_PN2,
            embedding,
            matcher.retrieval_scores(query, embedding),
            matcher.retrieval_scores_of_pairs(query, pairs),
        ]

    exact = results()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(*both) for both in zip(exact, results(), strict=True))


def test_position_embeddings_are_kept_until_their_weights_change(image: Tensor) -> None:
    model = checkpoint.load(preset("nano"), WEIGHTS).requires_grad_(False)
    trunk, side = model.image_encoder.trunk, SIDE // 4

    def kept() -> list[Tensor]:
        return [trunk._get_pos_embed((side, side)), model.sam_prompt_encoder.get_dense_pe()[0]]

    def computed() -> list[Tensor]:
        encoder = model.sam_prompt_encoder
        return [
            Hiera._get_pos_embed(trunk, (side, side)),
            PositionEmbeddingRandom.forward(encoder.pe_layer, encoder.image_embedding_size),
        ]

    with torch.inference_mode():
        first, again = kept(), kept()
    for one, other, expected in zip(first, again, computed(), strict=True):
        assert one.data_ptr() == other.data_ptr()
        assert torch.equal(one, expected)
        assert not one.is_inference()
    # In place, as adaptations are applied, and by other tensors, as weights are read.
    for assign in (False, True):
        changed = {name: 1.5 * tensor for name, tensor in model.state_dict().items()}
        model.load_state_dict(changed, assign=assign)
        model.requires_grad_(False)
        for one, expected, former in zip(kept(), computed(), first, strict=True):
            assert torch.equal(one, expected)
            assert not torch.equal(one, former)
    model.requires_grad_(True)
    assert trunk._get_pos_embed((side, side)).requires_grad


@given(
    arrays(np.float32, (2, 3, 6, 10), elements=st.floats(-(2.0**60), 2.0**60, width=32)),
)
def test_halved_is_average_pooling(array: npt.NDArray[np.float32]) -> None:
    maps = torch.from_numpy(array)
    expected = F.avg_pool2d(maps, 2)
    assert torch.equal(halved(maps), expected)
    assert torch.equal(halved(maps.requires_grad_()), expected)


@torch.no_grad()
def test_position_encodings_are_sam2s_and_the_same_under_autocast() -> None:
    sine = PositionEncoding(8)
    expected = super(PositionEncoding, sine).forward(torch.zeros(3, 1, 4, 5))
    frequencies = RandomFrequencies(8)
    coords = torch.rand(2, 3, 2)
    exact = frequencies.forward_with_coords(coords, (1, 1))
    for _ in range(2):
        assert torch.equal(sine(torch.zeros(3, 1, 4, 5)), expected)
    assert sine(torch.zeros(3, 1, 2, 2)).shape == (3, 8, 2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(frequencies.forward_with_coords(coords, (1, 1)), exact)
        assert torch.equal(sine(torch.zeros(3, 1, 4, 5)), expected)
