"""The batched vision tower against the library's own forward pass."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from support import tiny_config
from vessa_server.model import checkpoint, prompts, tokenizer, vision_tower
from vessa_server.model.config import VlmConfig
from vessa_server.model.presets import preset
from vessa_server.model.reasoner import Reasoner, qwen_config

WEIGHTS = Path(checkpoint.__file__).resolve().parents[3] / "weights" / "nano"


def _library(reasoner: Reasoner, image: Tensor) -> tuple[Tensor, Tensor]:
    side = reasoner.config.image_size // reasoner.patch_size
    batch = len(image)
    out = reasoner.vlm.model.visual(
        reasoner.patchify(image), grid_thw=torch.tensor([[1, side, side]] * batch)
    )
    features = [out.pooler_output, *out.deepstack_features]
    tokens, *deepstack = (f.view(batch, reasoner.grid**2, -1) for f in features)
    return tokens, torch.stack(deepstack)


def _ours(reasoner: Reasoner, image: Tensor) -> tuple[Tensor, Tensor]:
    found = reasoner.train().see(image)
    reasoner.eval()
    return found.tokens_BTD, found.deepstack_LBTD


def _tiny(**changes: Any) -> Reasoner:
    """Weights so large that attention, rotation and positions all matter."""
    config: VlmConfig = dataclasses.replace(tiny_config().vlm, **changes)
    torch.manual_seed(0)
    architecture = qwen_config(config)
    # A table of another side than the grid: its positions are interpolated.
    vision: Any = architecture.vision_config
    vision.num_position_embeddings = 49
    words = tokenizer.build(prompts.corpus(["disc"]), config.vocab_size)
    reasoner = Reasoner(config, words, architecture)
    tower: Any = reasoner.vlm.model.visual
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.normal_(std=0.2 if parameter.ndim > 1 else 1.0)
        tower.pos_embed.weight.normal_()
    return reasoner.eval()


@pytest.fixture(scope="module", params=["nano", "merged", "plain"])
def reasoner(request: pytest.FixtureRequest) -> Reasoner:
    if request.param == "nano":
        return checkpoint.load(preset("nano"), WEIGHTS).reasoner
    if request.param == "merged":
        return _tiny(merge_size=2, image_size=96, vision_depth=3, deepstack_layers=(0, 2))
    return _tiny(merge_size=1, patch_size=8)


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
def test_tokens_are_the_librarys(reasoner: Reasoner, training: bool) -> None:
    size = reasoner.config.image_size
    image = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    tokens, deepstack = _library(reasoner, image)
    reasoner.train(training)
    found = reasoner.see(image)
    reasoner.eval()
    for one, other in ((found.tokens_BTD, tokens), (found.deepstack_LBTD, deepstack)):
        assert one.shape == other.shape
        scale = max(1.0, float(other.abs().max()))
        assert float((one - other).abs().max()) < 1e-4 * scale
        if not training:
            assert torch.equal(one, other)


def test_gradients_are_the_librarys(reasoner: Reasoner) -> None:
    size = reasoner.config.image_size
    image = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(2))
    tower: Qwen3VLVisionModel = reasoner.vlm.model.visual
    gradients = []
    for run in (_library, _ours):
        tower.zero_grad()
        tokens, deepstack = run(reasoner, image)
        (tokens.square().mean() + deepstack.square().mean()).backward()
        gradients.append({n: p.grad for n, p in tower.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, one in gradients[0].items():
        other = gradients[1][name]
        assert float((one - other).abs().max()) <= 1e-4 * float(one.abs().max()) + 1e-7, name


def test_what_is_known_of_the_grid_is_not_stored(reasoner: Reasoner) -> None:
    assert all(name.startswith("vlm.") for name in reasoner.state_dict())
    assert {name.split(".")[0] for name, _ in reasoner.named_buffers()} > {"patches", "tail_T"}


def test_patches_that_are_merged_follow_each_other() -> None:
    row, column = vision_tower.merge_order(4, 2)
    assert row[:8].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert column[:8].tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
