"""Tokenizer of the ``nano`` preset: a byte-level BPE built offline from the project's words.

It has Qwen's chat and vision markers and ``<SEG>``, so that prompts are written the same way
for all presets. Unknown words fall back to bytes.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

SEG_TOKEN = "<SEG>"
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    SEG_TOKEN,
)


def build(corpus: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer on ``corpus``; the same corpus gives the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return wrap(tokenizer)


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Give a raw tokenizer the interface of ``transformers``."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=[SEG_TOKEN],
    )


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of ``text`` that a user wrote: what looks like a special token is ordinary text.

    Other text gets the ids of ``tokenizer.encode``, which would take those for the prompt's own
    markers. Its ``split_special_tokens`` still finds added tokens that are not
    called special, such as Qwen's ``<tool_call>``, and is a state that threads would share.
    """
    backend: Tokenizer = getattr(tokenizer, "backend_tokenizer")  # noqa: B009
    text = text.encode(errors="replace").decode()  # half a surrogate pair is no text
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    words = backend.pre_tokenizer.pre_tokenize_str(text)
    return [token.id for word, _ in words for token in backend.model.tokenize(word)]


def load(file: Path) -> PreTrainedTokenizerFast:
    """Read a ``tokenizer.json`` that :func:`build` made."""
    return wrap(Tokenizer.from_file(str(file)))


def load_pretrained(source: str) -> PreTrainedTokenizerBase:
    """Tokenizer of a published Qwen3-VL checkpoint, with ``<SEG>`` added."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"additional_special_tokens": [SEG_TOKEN]})
    return tokenizer
