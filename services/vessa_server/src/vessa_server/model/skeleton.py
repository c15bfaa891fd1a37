"""A model whose weights have no memory yet: to be filled where they shall be, and once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import Qwen3VLConfig
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from vessa_common import memory
from vessa_server.model.config import VessaConfig
from vessa_server.model.vessa import Vessa

# Of the memory that a batch on a CPU gives back, for the next one: the largest block, and in all.
LARGEST_KEPT, MOST_KEPT = 128 * 2**20, 256 * 2**20
INITIALISERS = {Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_}


class _WithoutMemory(TorchFunctionMode):
    """What layers ask for as room for weights has no memory, and nothing is written to it.

    All else is computed as ever: under the meta device, buffers that no file has (rotary
    frequencies, position grids) would have no values either.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            return func(*args, **(kwargs | {"device": "meta"}))
        if args and isinstance(args[0], Tensor) and args[0].is_meta and func in INITIALISERS:
            return args[0]
        return func(*args, **kwargs)


def skeleton(
    config: VessaConfig,
    tokenizer: PreTrainedTokenizerBase,
    architecture: Qwen3VLConfig | None = None,
) -> Vessa:
    """The model of ``config`` with matrices and kernels on the meta device."""
    with _WithoutMemory():
        return Vessa(config, tokenizer, architecture).eval()


def dtypes(model: Vessa, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The dtype of each stored tensor of a model in ``dtype``.

    Scalars (temperature, weights of residuals) and buffers (frequencies) stay in fp32: eight bits
    are too few for them, and they are nearly none of the bytes.
    """
    buffers = {name for name, _ in model.named_buffers()}
    return {
        name: dtype if tensor.ndim and name not in buffers else torch.float32
        for name, tensor in model.state_dict().items()
    }


def fill_with_noise(model: Vessa, device: torch.device, dtype: torch.dtype, seed: int) -> None:
    """Give a skeleton random weights on ``device``, made there."""
    generator = torch.Generator(device).manual_seed(seed)
    kinds = dtypes(model, dtype)
    state = {}
    for name, weight in model.named_parameters():
        if not weight.is_meta:
            state[name] = weight.detach().to(device, kinds[name])
            continue
        state[name] = torch.empty(weight.shape, dtype=kinds[name], device=device)
        if weight.ndim > 1:
            state[name].normal_(0.0, 0.02, generator=generator)
        else:
            state[name].fill_(1.0 if name.endswith("weight") else 0.0)
    model.load_state_dict(state, strict=False, assign=True)
    finish(model, device)


def finish(model: Vessa, device: torch.device) -> None:
    """Share memory among weights that are one, and send what is not stored to ``device`` too."""
    model.reasoner.vlm.tie_weights()
    model.to(device)
    if device.type == "cpu":
        memory.keep_freed(LARGEST_KEPT, MOST_KEPT, one_heap=True)
