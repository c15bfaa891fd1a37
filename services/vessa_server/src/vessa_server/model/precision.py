"""Numbers that the model computes with: where bf16 pays, and what stays in fp32 all the same."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vessa_common.precision import Precision, in_bf16

HALF_PRECISION = (torch.bfloat16, torch.float16)

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def autocast(device: torch.device, wanted: Precision) -> torch.autocast:
    """A context in which the model computes as the configuration says; see :func:`in_bf16`."""
    enabled = in_bf16(device, wanted)
    kind = _AttentionInFullPrecision if enabled and device.type == "cpu" else torch.autocast
    return kind(device.type, dtype=torch.bfloat16, enabled=enabled)


def in_full_precision(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Let ``function`` compute in fp32 in half-precision models and under autocast too.

    For what eight bits are too few for: logits of probabilities near 0 and 1, sharp softmaxes,
    lengths of vectors, phases of position encodings. Its tensors are cast, its products not;
    without autocast those in fp32 and fp64 stay as they are.
    """
    call = cast("Callable[..., _Result]", function)

    @functools.wraps(function)
    def run(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        halves = any(tensor.dtype in HALF_PRECISION for tensor in tensors)
        if not tensors or not (halves or torch.is_autocast_enabled(tensors[0].device.type)):
            return call(*args, **kwargs)
        with torch.autocast(tensors[0].device.type, enabled=False):
            named = {name: _widened(value) for name, value in kwargs.items()}
            return call(*map(_widened, args), **named)

    return run


def narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` as the layers of a model in ``dtype`` want it, after steps in fp32.

    Models in fp32 take what comes, under autocast in bf16 too.
    """
    return tensor.to(dtype) if dtype in HALF_PRECISION else tensor


class _AttentionInFullPrecision(torch.autocast):
    """bf16 on a CPU, where the backward pass of its attention takes two to five times fp32's."""

    def __enter__(self) -> None:
        super().__enter__()
        self._mode = _WidenAttention()
        self._mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._mode.__exit__(*error)
        super().__exit__(*error)


class _WidenAttention(TorchFunctionMode):
    """Calls attention, whoever does, in full precision."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            func = in_full_precision(func)
        return func(*args, **(kwargs or {}))


def _widened(value: object) -> object:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
