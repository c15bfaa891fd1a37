"""What the host plans for a batch, brought to the device in two copies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

Record = TypeVar("Record")


def to_device(record: Record, device: torch.device) -> Record:
    """A dataclass of CPU tensors, of others and of records of them, with all on ``device``.

    Numbers travel as one block of float32 and one of int64; to a GPU from pinned memory, so that
    nobody waits.
    """
    flat = list(_tensors(record))
    floats = [t.float().flatten() for t in flat if t.is_floating_point()]
    whole = [t.long().flatten() for t in flat if not t.is_floating_point()]
    moved = {True: _joined(floats, device), False: _joined(whole, device)}
    starts = {True: 0, False: 0}
    done: dict[int, Tensor] = {}
    for tensor in flat:
        kind = tensor.is_floating_point()
        end = starts[kind] + tensor.numel()
        values = moved[kind][starts[kind] : end].view(tensor.shape)
        done[id(tensor)] = values.bool() if tensor.dtype == torch.bool else values
        starts[kind] = end
    return _rebuilt(record, done)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on ``device``; to a GPU from pinned memory, so that nobody waits."""
    if device.type == "cuda" and torch.cuda.is_available():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _joined(parts: list[Tensor], device: torch.device) -> Tensor:
    return send(torch.cat(parts), device) if parts else torch.empty(0, device=device)


def _tensors(record: object) -> Iterator[Tensor]:
    for value in _values(record).values():
        if isinstance(value, Tensor):
            yield value
        elif is_dataclass(value):
            yield from _tensors(value)


def _rebuilt(record: Record, done: Mapping[int, Tensor]) -> Record:
    changed: dict[str, Any] = {}
    for name, value in _values(record).items():
        if isinstance(value, Tensor):
            changed[name] = done[id(value)]
        else:
            changed[name] = _rebuilt(value, done) if is_dataclass(value) else value
    return type(record)(**changed)


def _values(record: object) -> dict[str, Any]:
    return {f.name: getattr(record, f.name) for f in fields(record)}  # type: ignore[arg-type]
