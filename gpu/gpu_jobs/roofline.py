"""What the device does at best, and how near the model's steps come to it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gpu_jobs.jobs import rehearsal
from model_steps import Cost, Times, wait
from vessa_server.runtime.devices import resolve_dtype

# Side of square matrices, bytes of a copy, and how often each is done.
SIDE, COPIED, REPEATS = 8192, 2**31, 10
SMALL_SIDE, SMALL_COPIED = 512, 2**24


@dataclass(frozen=True)
class Peaks:
    """FLOPs a second of a large product of matrices, and bytes a second of a large copy."""

    flops: float
    bandwidth: float


def measure(device: torch.device, found: list[Peaks]) -> dict[str, Any]:
    """Measure them in the dtype that models are served in; appended to ``found``, too."""
    side, copied = (SMALL_SIDE, SMALL_COPIED) if rehearsal() else (SIDE, COPIED)
    dtype = resolve_dtype("auto", device)
    flops, flops_fp32 = (_product(device, kind, side) for kind in (dtype, torch.float32))
    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _least(lambda: target.copy_(source), device)
    bandwidth = 2 * copied / seconds
    found.append(Peaks(flops, bandwidth))
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "tflops": round(flops / 1e12, 3),
        "fp32_tflops": round(flops_fp32 / 1e12, 3),
        "gb_per_second": round(bandwidth / 1e9, 2),
    }


def row(cost: Cost, times: Times, peaks: Peaks | None) -> dict[str, Any]:
    """A step's cost and time, and the share that it reaches of what its cost allows.

    ``share`` is that of the longer of the times for its FLOPs at the peak and for all bytes that
    its operations move, as they are; above 1 where caches serve those. ``share_fused`` counts of
    the bytes only its parameters', as if all operations were fused. Matching is in fp32 in any
    model, and so cannot come near 1 where the peak is that of bf16.
    """
    found: dict[str, Any] = {
        "ms": round(1e3 * times.median, 3),
        "least_ms": round(1e3 * times.least, 3),
        "gflop": round(cost.flops / 1e9, 3),
        "moved_mb": round(cost.moved_bytes / 1e6, 2),
        "parameter_mb": round(cost.parameter_bytes / 1e6, 2),
    }
    if peaks is None:
        return found
    computing = cost.flops / peaks.flops
    moving, reading = (n / peaks.bandwidth for n in (cost.moved_bytes, cost.parameter_bytes))
    return found | {
        "bound_by": "compute" if computing > moving else "bandwidth",
        "bound_ms": round(1e3 * max(computing, moving), 4),
        "share": round(max(computing, moving) / times.median, 4),
        "share_fused": round(max(computing, reading) / times.median, 4),
    }


def _product(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """FLOPs a second of a product of square matrices."""
    matrix = torch.randn(side, side, device=device).to(dtype)
    product = torch.empty_like(matrix)
    return 2 * side**3 / _least(lambda: torch.mm(matrix, matrix, out=product), device)


def _least(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of some calls."""
    taken = []
    for _ in range(REPEATS):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        taken.append(time.perf_counter() - began)
    return min(taken)
