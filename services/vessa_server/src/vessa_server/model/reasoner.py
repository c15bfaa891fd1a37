"""Step 3, *Reason*: Qwen3-VL reads text, template overlay and target, and answers ``<SEG>``.

The prompt is ordered *text, template overlay, target*. Everything before the target is a
prefix whose key/value cache depends on the template and the class only, so it is computed
once and kept. Reading ``<SEG>`` is one teacher-forced pass over the target and the marker.

Axes: P image-class pairs, T tokens, D features, L layers, G key/value heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from vessa_server.model import vision_tower
from vessa_server.model.config import VlmConfig
from vessa_server.model.records import TensorRecord
from vessa_server.model.tokenizer import SEG_TOKEN, encode_text

PATCH_MEAN, PATCH_STD = 0.5, 0.5
ROLE = "user\n"
IGNORED = -100


@dataclass(frozen=True)
class PromptPrefix(TensorRecord):
    """Key/value cache of *text + template overlay*.

    Attributes:
        keys_PLGTD, values_PLGTD: the cache.
        mask_PT: 1 for real tokens, 0 for the padding on the left.
        next_position_P: first M-RoPE position after the prefix.
    """

    keys_PLGTD: Tensor
    values_PLGTD: Tensor
    mask_PT: Tensor
    next_position_P: Tensor


@dataclass(frozen=True)
class Reading:
    """What the language model says of a target.

    Attributes:
        seg_PD: hidden state of ``<SEG>``.
        target_PTD: hidden states of the target's visual tokens, row by row; they have read the
            text and the template.
        loss: mean cross-entropy of ``<SEG>`` and the answer; 0 where no answer was given.
    """

    seg_PD: Tensor
    target_PTD: Tensor
    loss: Tensor


@dataclass(frozen=True)
class VisualTokens:
    """Output of the VLM's vision tower: merged tokens and DeepStack features, (B, T, D) each."""

    tokens_BTD: Tensor
    deepstack_LBTD: Tensor

    def select(self, index_P: Tensor) -> VisualTokens:
        """Images ``index_P``, in that order."""
        return VisualTokens(self.tokens_BTD[index_P], self.deepstack_LBTD[:, index_P])


def qwen_config(config: VlmConfig) -> Qwen3VLConfig:
    """Qwen3-VL configuration of the sizes in ``config``."""
    half = config.head_dim // 2
    sections = [half - 2 * (half // 3), half // 3, half // 3]
    return Qwen3VLConfig(
        text_config={
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "num_key_value_heads": config.num_key_value_heads,
            "head_dim": config.head_dim,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": sections,
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": config.vision_depth,
            "hidden_size": config.vision_hidden_size,
            "intermediate_size": config.vision_intermediate_size,
            "num_heads": config.vision_heads,
            "patch_size": config.patch_size,
            "spatial_merge_size": config.merge_size,
            "out_hidden_size": config.hidden_size,
            "num_position_embeddings": (config.image_size // config.patch_size) ** 2,
            "deepstack_visual_indexes": list(config.deepstack_layers),
        },
        tie_word_embeddings=True,
    )


class Reasoner(nn.Module):
    """Qwen3-VL with a prefix cache and the ``<SEG>`` read-out.

    An image is the same number of tokens at the same place of every prompt, so nothing is looked
    for in ids: on a GPU no step of :meth:`see`, :meth:`prefix` and :meth:`read` waits for it.

    Attributes:
        opening_T, closing_T: ids around the template overlay, before the target.
        tail_T: ids after the target, the last one ``<SEG>``.
        cells_3T: M-RoPE positions of an image's tokens from its first, row by row.
    """

    opening_T: Tensor
    closing_T: Tensor
    tail_T: Tensor
    cells_3T: Tensor

    def __init__(
        self,
        config: VlmConfig,
        tokenizer: PreTrainedTokenizerBase,
        architecture: Qwen3VLConfig | None = None,
    ) -> None:
        """Build with random weights; ``architecture`` overrides the sizes in ``config``."""
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.vlm = Qwen3VLForConditionalGeneration(architecture or qwen_config(config))
        vision: Any = self.vlm.config.vision_config
        self.patch_size: int = vision.patch_size
        self.merge_size: int = vision.spatial_merge_size
        self.temporal_patch_size: int = vision.temporal_patch_size
        self.patches = vision_tower.PatchGrid(
            self.vlm.model.visual, config.image_size // self.patch_size
        )
        begin, end = self._id("<|vision_start|>"), self._id("<|vision_end|>")
        cell = torch.arange(self.grid**2)
        row, column = torch.div(cell, self.grid, rounding_mode="floor"), cell % self.grid
        for name, value in (
            ("opening_T", torch.tensor([begin])),
            ("closing_T", torch.tensor([end, begin])),
            ("tail_T", torch.tensor([*self._answer_ids, self._id(SEG_TOKEN)])),
            ("cells_3T", torch.stack([torch.zeros_like(cell), row, column])),
        ):
            self.register_buffer(name, value, persistent=False)

    @property
    def hidden_size(self) -> int:
        """Width of the language model."""
        return int(self._text_config.hidden_size)

    @property
    def grid(self) -> int:
        """Side of the square grid of visual tokens of one image."""
        return self.config.image_size // (self.patch_size * self.merge_size)

    def tokenize(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Left-padded ids and mask, (P, max_text_tokens) each; longer text is cut at the end.

        Special tokens in ``prompts`` are ordinary text.
        """
        limit = self.config.max_text_tokens
        start = self._id("<|im_start|>")
        rows = [[start, *encode_text(self.tokenizer, ROLE + prompt)][:limit] for prompt in prompts]
        ids = torch.full((len(rows), limit), self._pad_id, dtype=torch.long)
        mask = torch.zeros((len(rows), limit), dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, limit - len(row) :] = torch.tensor(row)
            mask[index, limit - len(row) :] = 1
        return self._sent(ids), self._sent(mask)

    def see(self, image_B3HW: Tensor) -> VisualTokens:
        """Run the vision tower on images in [0, 1] of ``image_size`` squared."""
        patches = self.patchify(image_B3HW).unflatten(0, (image_B3HW.shape[0], -1))
        return VisualTokens(*vision_tower.see(self.vlm.model.visual, self.patches, patches))

    def unseen(self, image_B3HW: Tensor) -> VisualTokens:
        """No tokens at all, for images that the VLM is not asked about."""
        batch = image_B3HW.shape[0]
        layers = len(self.vlm.model.visual.deepstack_merger_list)
        return VisualTokens(
            image_B3HW.new_zeros(batch, 0, self.hidden_size),
            image_B3HW.new_zeros(layers, batch, 0, self.hidden_size),
        )

    def patchify(self, image_B3HW: Tensor) -> Tensor:
        """Cut images into the flattened patches, in merge order, of Qwen's image processor."""
        batch, channels, height, width = image_B3HW.shape
        patch, merge = self.patch_size, self.merge_size
        x = (image_B3HW - PATCH_MEAN) / PATCH_STD
        x = x[:, None].expand(-1, self.temporal_patch_size, -1, -1, -1)
        rows, columns = height // patch // merge, width // patch // merge
        x = x.reshape(
            batch, self.temporal_patch_size, channels, rows, merge, patch, columns, merge, patch
        )
        x = x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        return x.reshape(batch * rows * columns * merge**2, -1)

    def prefix(self, ids_PT: Tensor, mask_PT: Tensor, overlay: VisualTokens) -> PromptPrefix:
        """Encode text and template overlay into their key/value cache."""
        pairs = ids_PT.shape[0]
        opening, closing = (t.expand(pairs, -1) for t in (self.opening_T, self.closing_T))
        tail = opening.shape[1] + self.grid**2 + closing.shape[1]
        mask = torch.cat([mask_PT, mask_PT.new_ones(pairs, tail)], dim=1)
        text_length_P = mask_PT.sum(dim=1)
        text_3PT = (mask_PT.cumsum(dim=1) - 1).clamp(min=0).expand(3, -1, -1)
        marker_P = text_length_P
        image_3PT = self._image_positions(marker_P + 1)
        after_P = marker_P + 1 + self.grid
        position_3PT = torch.cat(
            [
                text_3PT,
                marker_P[None, :, None].expand(3, -1, -1),
                image_3PT,
                after_P[None, :, None].expand(3, -1, -1),
                (after_P + 1)[None, :, None].expand(3, -1, -1),
            ],
            dim=2,
        )
        cache = _Cache()
        before = torch.cat([ids_PT, opening], dim=1)
        self._run(before, overlay, closing, position_3PT, mask, cache)
        return PromptPrefix(
            keys_PLGTD=torch.stack(cache.keys, dim=1),
            values_PLGTD=torch.stack(cache.values, dim=1),
            mask_PT=mask,
            next_position_P=after_P + 2,
        )

    def read(
        self, prefix: PromptPrefix, target: VisualTokens, answer_PT: Tensor | None = None
    ) -> Reading:
        """Teacher-forced pass over target and ``<SEG>`` (and, in training, the answer).

        Args:
            prefix: from :meth:`prefix`, one row for each pair.
            target: visual tokens of each pair's image.
            answer_PT: token ids that follow ``<SEG>``, padded with -100.
        """
        hidden_PTD, text_PT, _ = self._read(prefix, target, answer_PT)
        at_seg = self._seg_index
        seg_PD, target_PTD = hidden_PTD[:, at_seg], hidden_PTD[:, : self.grid**2]
        if answer_PT is None:
            return Reading(seg_PD, target_PTD, seg_PD.new_zeros(()))
        logits_PTV = self.vlm.lm_head(hidden_PTD[:, at_seg - 1 : -1])
        at_text = len(self.tail_T) - 1
        expected_PT = torch.cat([text_PT[:, at_text : at_text + 1], answer_PT], dim=1)
        loss = F.cross_entropy(
            logits_PTV.flatten(0, 1).float(), expected_PT.flatten(), ignore_index=IGNORED
        )
        return Reading(seg_PD, target_PTD, loss)

    @torch.no_grad()
    def explain(self, prefix: PromptPrefix, target: VisualTokens, max_tokens: int) -> list[str]:
        """Greedy free text after ``<SEG>``, one string for each pair."""
        hidden_PTD, _, cache = self._read(prefix, target, None)
        pairs = hidden_PTD.shape[0]
        mask = torch.cat(
            [prefix.mask_PT, prefix.mask_PT.new_ones(pairs, self._seg_index + 1)], dim=1
        )
        position_P = prefix.next_position_P + self.grid + len(self.tail_T)
        end = self._id("<|im_end|>")
        done = torch.zeros(pairs, dtype=torch.bool, device=mask.device)
        tokens: list[Tensor] = []
        hidden = hidden_PTD[:, -1]
        for _ in range(max_tokens):
            token_P = self.vlm.lm_head(hidden).argmax(dim=-1).masked_fill(done, end)
            done |= token_P == end
            if bool(done.all()):
                break
            tokens.append(token_P)
            mask = torch.cat([mask, mask.new_ones(pairs, 1)], dim=1)
            position = position_P[None, :, None].expand(3, -1, -1)
            hidden = self._run(token_P[:, None], None, None, position, mask, cache)[:, -1]
            position_P = position_P + 1
        if not tokens:
            return [""] * pairs
        rows = torch.stack(tokens, dim=1).tolist()
        return [str(self.tokenizer.decode(r, skip_special_tokens=True)).strip() for r in rows]

    def answer_ids(self, answers: list[str], limit: int = 24) -> Tensor:
        """Ids of the answers' text and its end marker, padded with -100, (P, limit)."""
        out = torch.full((len(answers), limit), IGNORED, dtype=torch.long)
        for index, answer in enumerate(answers):
            row = self.tokenizer.encode(answer + "<|im_end|>", add_special_tokens=False)[:limit]
            out[index, : len(row)] = torch.tensor(row)
        return out

    @property
    def _answer_ids(self) -> list[int]:
        """Tokens between the target image and ``<SEG>``."""
        text = "<|vision_end|><|im_end|>\n<|im_start|>assistant\n"
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    @property
    def _seg_index(self) -> int:
        return self.grid**2 + len(self.tail_T) - 1

    def _read(
        self, prefix: PromptPrefix, target: VisualTokens, answer_PT: Tensor | None
    ) -> tuple[Tensor, Tensor, _Cache]:
        """Hidden states of target and text, ids of the text, and the cache that goes on."""
        pairs = prefix.mask_PT.shape[0]
        text_PT = self.tail_T.expand(pairs, -1)
        if answer_PT is not None:
            known = answer_PT.masked_fill(answer_PT == IGNORED, self._pad_id)
            text_PT = torch.cat([text_PT, known], dim=1)
        length = text_PT.shape[1]
        mask = torch.cat(
            [prefix.mask_PT, prefix.mask_PT.new_ones(pairs, self.grid**2 + length)], dim=1
        )
        after_P = prefix.next_position_P + self.grid
        position_PT = after_P[:, None] + torch.arange(length, device=after_P.device)
        position_3PT = torch.cat(
            [self._image_positions(prefix.next_position_P), position_PT.expand(3, -1, -1)], dim=2
        )
        cache = _Cache(prefix.keys_PLGTD.unbind(1), prefix.values_PLGTD.unbind(1))
        hidden_PTD = self._run(None, target, text_PT, position_3PT, mask, cache)
        return hidden_PTD, text_PT, cache

    def _run(
        self,
        before_PT: Tensor | None,
        visual: VisualTokens | None,
        after_PT: Tensor | None,
        position_3PT: Tensor,
        mask_PT: Tensor,
        cache: _Cache,
    ) -> Tensor:
        """Run the language model on text, an image, and text; what is None is left out.

        The library's own forward pass reads back where image tokens and padding are; the layers
        are the same. ``mask_PT`` covers the cache too.

        Returns:
            Hidden states of the new tokens, (P, T, D).
        """
        language: Any = self.vlm.model.language_model
        table = language.embed_tokens
        parts: list[Tensor] = []
        if before_PT is not None:
            parts.append(table(before_PT))
        start = parts[0].shape[1] if parts else 0
        if visual is not None:
            parts.append(visual.tokens_BTD.to(table.weight.dtype))
        if after_PT is not None:
            parts.append(table(after_PT))
        hidden = torch.cat(parts, dim=1)
        deepstack = () if visual is None else visual.deepstack_LBTD.to(table.weight.dtype)
        position_embeddings = language.rotary_emb(hidden, position_3PT)
        attended = _attended(mask_PT, hidden.shape[1])
        for index, layer in enumerate(language.layers):
            hidden = layer(
                hidden,
                attention_mask=attended,
                cache=cache,
                position_embeddings=position_embeddings,
            )
            if index < len(deepstack):
                end = start + self.grid**2
                seen = hidden[:, start:end] + deepstack[index]
                hidden = hidden.slice_scatter(seen, 1, start, end)
        out: Tensor = language.norm(hidden)
        return out

    def _image_positions(self, start_P: Tensor) -> Tensor:
        """M-RoPE positions (time, row, column) of an image that begins at ``start_P``."""
        return start_P[None, :, None] + self.cells_3T[:, None]

    def _sent(self, tensor: Tensor) -> Tensor:
        """``tensor`` on the model's device, which is not waited for."""
        device = self.vlm.device
        return (
            tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
        )

    @property
    def _text_config(self) -> Any:
        return self.vlm.config.text_config

    @property
    def _pad_id(self) -> int:
        return self._id("<|endoftext|>")

    def _id(self, token: str) -> int:
        index = self.tokenizer.convert_tokens_to_ids(token)
        if not isinstance(index, int):
            raise TypeError(f"tokenizer: expected one id for {token}, got {index}")
        return index


class _Cache:
    """Keys and values of each layer, (P, G, T, D), to which its attention appends."""

    def __init__(self, keys: Sequence[Tensor] = (), values: Sequence[Tensor] = ()) -> None:
        self.keys, self.values = list(keys), list(values)

    def update(
        self, key_PGTD: Tensor, value_PGTD: Tensor, layer: int, **_: object
    ) -> tuple[Tensor, Tensor]:
        """What the library's layers call: all keys and values, with the new ones at the end."""
        if layer == len(self.keys):
            self.keys.append(key_PGTD)
            self.values.append(value_PGTD)
        else:
            self.keys[layer] = torch.cat([self.keys[layer], key_PGTD], dim=2)
            self.values[layer] = torch.cat([self.values[layer], value_PGTD], dim=2)
        return self.keys[layer], self.values[layer]


def _attended(mask_PT: Tensor, new: int) -> Tensor:
    """Which tokens the ``new`` last ones attend to, (P, 1, new, T): real ones up to themselves.

    Padding attends to itself, so that no row is empty: what attention makes of one depends on its
    kernel.
    """
    place = torch.arange(mask_PT.shape[1], device=mask_PT.device)
    query = place[-new:, None]
    allowed_PQT = (place <= query) & mask_PT.bool()[:, None] | (place == query)
    return allowed_PQT[:, None]
