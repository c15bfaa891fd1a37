"""Numbers that networks compute with."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16"]

# What Linux calls the instructions that multiply bf16 numbers.
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
CPU_INFO = Path("/proc/cpuinfo")

log = logging.getLogger(__name__)


def autocast(device: torch.device, wanted: Precision) -> torch.autocast:
    """A context in which networks compute as the configuration says; see :func:`in_bf16`."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=in_bf16(device, wanted))


def in_bf16(device: torch.device, wanted: Precision) -> bool:
    """Whether networks compute in bf16; warns once where that is emulated.

    ``auto`` is bf16 where the device has it and fp32 elsewhere.
    """
    native = wanted != "fp32" and bf16_is_native(device)
    if wanted == "bf16" and not native:
        _warn_of_emulation(device.type)
    return wanted == "bf16" or native


def bf16_is_native(device: torch.device) -> bool:
    """Whether ``device`` itself multiplies bf16 numbers; others emulate them.

    A CPU whose flags cannot be read counts as one that does not.
    """
    if device.type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and not BF16_FLAGS.isdisjoint(_cpu_flags())


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
