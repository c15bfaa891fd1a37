"""Numbers that networks compute with."""

from __future__ import annotations

import torch

from ssl_trainer.config import Precision


def precision(device: torch.device, wanted: Precision) -> torch.autocast:
    """A context in which networks compute as the configuration says."""
    capable = device.type == "cuda" and torch.cuda.is_bf16_supported()
    enabled = wanted == "bf16" or (wanted == "auto" and capable)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
