"""Counts what would make a GPU's host wait, on machines without one.

Ops whose result the host must see (``.item()``, ``nonzero``, indexing with booleans) are found by
name, whatever the device. Copies between host and device (``.tolist()`` is one) are found on fake
CUDA tensors, :func:`on_fake_cuda`, where reading a value or mixing devices is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vessa_server.model import preprocess

# The host reads a value, or a size that depends on values.
ALWAYS = frozenset(
    {
        "aten._local_scalar_dense",  # item, float, bool, int
        "aten.equal",
        "aten.is_nonzero",
        "aten.masked_scatter_backward",
        "aten.masked_select",
        "aten.nonzero",
        "aten._unique",
        "aten._unique2",
        "aten.unique_consecutive",
        "aten.unique_dim",
        "aten.unique_dim_consecutive",
        "aten.bincount",
        "aten.histc",
    }
)
INDEXING = frozenset(
    {
        "aten.index",
        "aten.index_put",
        "aten.index_put_",
        "aten._index_put_impl_",
        "aten._unsafe_index",
        "aten._unsafe_index_put",
    }
)


class CountedOps(TorchDispatchMode):
    """Every op that is called inside, of the backward pass too."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.syncs: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = str(func).rsplit(".", 1)[0]
        result = func(*args, **kwargs)
        self.calls[name] += 1
        if _waits(name, str(func), args, kwargs, result):
            self.syncs[name] += 1
        return result


@contextmanager
def counted_ops() -> Iterator[CountedOps]:
    """Count ops; ``syncs`` of what is yielded has those that a GPU's host would wait for."""
    with CountedOps() as ops:
        yield ops


@contextmanager
def on_fake_cuda(*modules: nn.Module, bf16: bool = False) -> Iterator[CountedOps]:
    """Tensors without values inside; parameters and buffers of ``modules`` lie on CUDA.

    As after ``model.to("cuda")``, for whatever is no parameter and no buffer stays on the CPU. The
    modules cannot be used any more afterwards. There is no backward pass on fake CUDA tensors.
    ``bf16`` switches autocast on, which ``torch.autocast`` refuses without a GPU.
    """
    preprocess._constant.cache_clear()  # what it holds is real, and what it gets here is not
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        for module in [m for root in modules for m in root.modules()]:
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(_on_cuda(parameter))
            for name, buffer in list(module._buffers.items()):
                if buffer is not None:
                    module._buffers[name] = _on_cuda(buffer)
            for name, value in list(vars(module).items()):
                if isinstance(value, Tensor):
                    vars(module)[name] = mode.from_tensor(value)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.set_autocast_enabled("cuda", bf16)
        try:
            with CountedOps() as ops:
                yield ops
        finally:
            torch.set_autocast_enabled("cuda", False)
            preprocess._constant.cache_clear()


def _on_cuda(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")


def _waits(name: str, overload: str, args: Any, kwargs: dict[str, Any], result: Any) -> bool:
    if name in ALWAYS:
        return True
    if name in INDEXING:
        return any(i is not None and i.dtype in {torch.bool, torch.uint8} for i in args[1])
    if name == "aten.repeat_interleave" and overload.endswith(".Tensor"):
        return kwargs.get("output_size") is None
    if name == "aten.lift_fresh":
        # torch.tensor(list), copied from the host; what x[0] = 1 fills with has no dimension.
        return bool(result.ndim and result.numel())
    if name in {"aten._to_copy", "aten.copy_"} and result.numel() > 0:
        ends = {v.device.type for v in tree_leaves((args, result)) if isinstance(v, Tensor)}
        blocking = not (kwargs.get("non_blocking") or (name == "aten.copy_" and len(args) > 2))
        return len(ends) > 1 and blocking
    return False
