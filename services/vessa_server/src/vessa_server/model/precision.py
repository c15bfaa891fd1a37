"""Numbers that the model computes with: where bf16 pays, and what stays in fp32 all the same."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Precision = Literal["auto", "fp32", "bf16"]

# What Linux calls the instructions that multiply bf16 numbers.
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
HALF_PRECISION = (torch.bfloat16, torch.float16)
CPU_INFO = Path("/proc/cpuinfo")

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

log = logging.getLogger(__name__)


def autocast(device: torch.device, wanted: Precision) -> torch.autocast:
    """A context in which the model computes as the configuration says.

    ``auto`` is bf16 where the device has it and fp32 elsewhere.
    """
    native = wanted != "fp32" and bf16_is_native(device)
    if wanted == "bf16" and not native:
        _warn_of_emulation(device.type)
    enabled = wanted == "bf16" or native
    kind = _AttentionInFullPrecision if enabled and device.type == "cpu" else torch.autocast
    return kind(device.type, dtype=torch.bfloat16, enabled=enabled)


def bf16_is_native(device: torch.device) -> bool:
    """Whether ``device`` itself multiplies bf16 numbers; others emulate them.

    A CPU whose flags cannot be read counts as one that does not.
    """
    if device.type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and not BF16_FLAGS.isdisjoint(_cpu_flags())


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


@functools.cache
def _cpu_flags() -> frozenset[str]:
    try:
        text = CPU_INFO.read_text()
    except OSError:
        return frozenset()
    first = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return frozenset(first.split())


@functools.cache
def _warn_of_emulation(device_type: str) -> None:
    """Once for each kind of device, not at every update."""
    log.warning(
        "precision: this %s has no bf16 instructions and emulates them, which takes about 15 times "
        "as long as fp32; choose auto or fp32",
        device_type.upper(),
    )
