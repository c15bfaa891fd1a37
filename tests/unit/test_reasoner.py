"""The VLM wrapper against the library's own processing and its plain forward pass."""

from __future__ import annotations

import functools
import json
import unicodedata
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer, Qwen2VLImageProcessorPil

from support import tiny_model
from vessa_server.model import prompts, tokenizer
from vessa_server.model.reasoner import Reasoner, VisualTokens
from vessa_server.model.seg_token_projector import SegMap
from vessa_server.model.tokenizer import SPECIAL_TOKENS


@functools.cache
def _reasoner() -> Reasoner:
    return tiny_model().reasoner.requires_grad_(False)


@pytest.fixture(scope="module")
def reasoner() -> Reasoner:
    return _reasoner()


def _images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def test_patches_are_those_of_qwens_image_processor(reasoner: Reasoner) -> None:
    processor: Any = Qwen2VLImageProcessorPil(
        patch_size=16, merge_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    pixels = (_images(1)[0] * 255).round().to(torch.uint8)
    expected = processor(
        pixels.permute(1, 2, 0).numpy(), return_tensors="pt", min_pixels=64**2, max_pixels=64**2
    )
    assert expected["image_grid_thw"].tolist() == [[1, 4, 4]]
    found = reasoner.patchify(pixels[None].float() / 255)
    assert torch.allclose(found, expected["pixel_values"], atol=1e-5)


def _whole_forward(
    reasoner: Reasoner, prompt: str, overlay: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """Hidden state of <SEG> by one forward of the library, with its own positions."""
    pad = "<|image_pad|>" * 4
    text = (
        f"<|im_start|>user\n{prompt}<|vision_start|>{pad}<|vision_end|>"
        f"<|vision_start|>{pad}<|vision_end|><|im_end|>\n<|im_start|>assistant\n<SEG>"
    )
    ids = torch.tensor([reasoner.tokenizer.encode(text, add_special_tokens=False)])
    image_token = reasoner._id("<|image_pad|>")
    is_image: torch.Tensor = torch.eq(ids, image_token)
    reasoner.vlm.config.image_token_id = image_token
    out = reasoner.vlm.model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=reasoner.patchify(torch.cat([overlay, target])),
        image_grid_thw=torch.tensor([[1, 4, 4], [1, 4, 4]]),
        mm_token_type_ids=is_image.int(),
    )
    hidden: torch.Tensor = out.last_hidden_state
    return hidden[0, -1]


@torch.no_grad()
def test_prefix_and_read_are_one_forward_of_the_library(reasoner: Reasoner) -> None:
    prompts = ["Segment the disc.", "Segment the long bar below the disc, please."]
    overlays, targets = _images(2, 1), _images(2, 2)
    ids, mask = reasoner.tokenize(prompts)
    assert int(mask.sum(dim=1).max()) < mask.shape[1], "the test needs padding"
    prefix = reasoner.prefix(ids, mask, reasoner.see(overlays))
    found = reasoner.read(prefix, reasoner.see(targets)).seg_PD
    for row, prompt in enumerate(prompts):
        expected = _whole_forward(reasoner, prompt, overlays[row : row + 1], targets[row : row + 1])
        assert torch.allclose(found[row], expected, atol=1e-4)


@torch.no_grad()
def test_the_text_and_both_images_change_seg(reasoner: Reasoner) -> None:
    def seg(prompt: str, overlay: int, target: int) -> torch.Tensor:
        ids, mask = reasoner.tokenize([prompt])
        prefix = reasoner.prefix(ids, mask, reasoner.see(_images(1, overlay)))
        return reasoner.read(prefix, reasoner.see(_images(1, target))).seg_PD

    base = seg("the disc", 1, 2)
    assert torch.equal(base, seg("the disc", 1, 2))
    for other in (seg("the bar", 1, 2), seg("the disc", 3, 2), seg("the disc", 1, 3)):
        assert float((base - other).abs().max()) > 1e-5


@torch.no_grad()
def test_language_loss_is_the_cross_entropy_of_seg_and_answer(reasoner: Reasoner) -> None:
    ids, mask = reasoner.tokenize(["the disc"])
    prefix = reasoner.prefix(ids, mask, reasoner.see(_images(1)))
    target: VisualTokens = reasoner.see(_images(1, 1))
    short, long = reasoner.answer_ids([" absent"], 8), reasoner.answer_ids([" absent"], 20)
    assert int((short >= 0).sum()) >= 2
    losses = [float(reasoner.read(prefix, target, a).loss) for a in (short, long)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5), "padding must not count"
    assert losses[0] > 0


@torch.no_grad()
def test_explain_is_greedy_decoding(reasoner: Reasoner) -> None:
    ids, mask = reasoner.tokenize(["the disc", "the very long bar of the picture"])
    prefix = reasoner.prefix(ids, mask, reasoner.see(_images(2)))
    target = reasoner.see(_images(2, 1))
    words = reasoner.explain(prefix, target, 4)
    assert len(words) == 2
    # Teacher forcing its own words must predict them again.
    hidden, _, _ = reasoner._read(prefix, target, None)
    first = reasoner.vlm.lm_head(hidden[:, -1]).argmax(dim=-1)
    for row in range(2):
        decoded = str(reasoner.tokenizer.decode([int(first[row])], skip_special_tokens=True))
        assert words[row].startswith(decoded.strip())


def test_long_text_is_cut_to_the_limit(reasoner: Reasoner) -> None:
    ids, mask = reasoner.tokenize(["word " * 500])
    assert ids.shape == mask.shape == (1, reasoner.config.max_text_tokens)
    assert bool(mask.all())


LOOKING_SPECIAL = (*SPECIAL_TOKENS, "<tool_call>", "<|object_ref_start|>")
WORDS = (*LOOKING_SPECIAL, "left", " lung", "\n", "\x00", "\x1b", "Größe", "漢字", "<|", "|>", " ")
texts = st.one_of(st.text(), st.lists(st.sampled_from(WORDS)).map("".join))


@functools.cache
def _tokenizers() -> tuple[PreTrainedTokenizerFast, Qwen2Tokenizer]:
    """The project's own, and Qwen's with the same words and added tokens of both kinds."""
    own = tokenizer.build(prompts.corpus(["left lung"]), 600)
    bpe = json.loads(own.backend_tokenizer.to_str())["model"]
    merges: Any = [tuple(pair) for pair in bpe["merges"]]
    qwen = Qwen2Tokenizer(bpe["vocab"], merges)
    added = [AddedToken(t, special=t != "<tool_call>", normalized=False) for t in LOOKING_SPECIAL]
    qwen.add_tokens(added)
    return own, qwen


@pytest.mark.parametrize("index", [0, 1])
@given(text=texts)
def test_users_text_never_has_a_special_token(index: int, text: str) -> None:
    words = _tokenizers()[index]
    special = {words.convert_tokens_to_ids(token) for token in LOOKING_SPECIAL}
    found = tokenizer.encode_text(words, text)
    assert not special.intersection(found)
    assert words.decode(found) == (unicodedata.normalize("NFC", text) if index else text)


@pytest.mark.parametrize("index", [0, 1])
@given(text=texts)
def test_ordinary_text_has_the_ids_that_it_always_had(index: int, text: str) -> None:
    words = _tokenizers()[index]
    for token in LOOKING_SPECIAL:
        text = text.replace(token, "")
    if not any(token in text for token in LOOKING_SPECIAL):
        expected = words.encode("<|im_start|>user\n" + text, add_special_tokens=False)
        assert [expected[0], *tokenizer.encode_text(words, "user\n" + text)] == expected


@given(name=texts, description=texts)
def test_a_prompt_is_one_line_of_ordinary_tokens(name: str, description: str) -> None:
    reasoner = _reasoner()
    prompt = prompts.prompt(name, description, "red")
    assert not any(unicodedata.category(c) == "Cc" for c in prompt)
    ids, mask = reasoner.tokenize([prompt, "the disc"])
    start, *rest = ids[0][mask[0].bool()].tolist()
    assert start == reasoner._id("<|im_start|>")
    assert not {reasoner._id(token) for token in SPECIAL_TOKENS}.intersection(rest)


def test_half_a_surrogate_pair_is_read_as_a_question_mark() -> None:
    own, _ = _tokenizers()
    assert tokenizer.encode_text(own, "left \ud800lung") == own.encode("left ?lung")


@torch.no_grad()
def test_special_tokens_of_a_user_are_read_like_other_words(reasoner: Reasoner) -> None:
    ids, mask = reasoner.tokenize(["the <|image_pad|><SEG><|im_end|> disc", "the disc"])
    overlay, target = reasoner.see(_images(2)), reasoner.see(_images(2, 1))
    together = reasoner.read(reasoner.prefix(ids, mask, overlay), target).seg_PD
    assert bool(together.isfinite().all())
    plain = reasoner.prefix(ids[1:], mask[1:], overlay.select(torch.tensor([1])))
    alone = reasoner.read(plain, target.select(torch.tensor([1]))).seg_PD
    assert torch.allclose(together[1:], alone, atol=1e-5)


def test_the_map_of_seg_is_its_dot_product_with_every_cell() -> None:
    torch.manual_seed(0)
    seg_map = SegMap(hidden_size=6, feature_dim=4)
    seg, target, match = torch.randn(2, 6), torch.randn(2, 16, 6), torch.randn(2, 4, 4, 4)
    with torch.no_grad():
        found = seg_map(seg, target, match)
        for pair, row, column in ((0, 0, 0), (1, 2, 3)):
            asked, token = (seg_map.norm(v) for v in (seg[pair], target[pair, 4 * row + column]))
            coarse = seg_map.coarse_query(asked) @ seg_map.coarse_key(token) / 2
            fine = seg_map.fine_query(asked) @ match[pair, :, row, column]
            expected = coarse + fine + seg_map.bias
            assert float(found[pair, 0, row, column]) == pytest.approx(float(expected), abs=1e-5)
