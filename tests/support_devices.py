"""Devices that the tests run on: the CPU, and a GPU where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

DEVICES = ("cpu", "cuda")


def skip_without(device: str) -> None:
    """Skip the test where there is no such device."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


@contextmanager
def exact_products() -> Iterator[None]:
    """Let a GPU's convolutions not round fp32 to TF32."""
    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
