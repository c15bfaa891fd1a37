"""Which device and dtype a runtime uses, from a setting."""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:n`` means here.

    Raises:
        ValueError: it is not there; says which ones are.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda", 0) if available else torch.device("cpu")
    kind, _, number = name.partition(":")
    known = kind in ("cpu", "cuda") and (not number or (kind == "cuda" and number.isdecimal()))
    if not known:
        raise ValueError(f"device: {name!r}, expected auto, cpu, cuda or cuda:N (VESSA_DEVICE)")
    if kind == "cpu":
        return torch.device("cpu")
    index = int(number or 0)
    if index >= available:
        there = f"{available} GPUs" if available else "no GPU that PyTorch can use"
        raise ValueError(
            f"device: {name!r}, but this machine has {there}; expected auto, cpu"
            + (f" or cuda:0..{available - 1}" if available else "")
            + " (VESSA_DEVICE)"
        )
    return torch.device("cuda", index)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype that ``auto`` or a name means on ``device``: bfloat16 on GPUs that have it."""
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32
