"""How fast a trainer is, how busy it keeps the device, and what it spends its time on."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo.utils
from torch.profiler import ProfilerActivity, profile

from gpu_jobs.gpu import Sampler
from gpu_jobs.steps import step, use_groups, wait
from vessa_server.training.trainer import Stage1Trainer

WARM_UPDATES = 4
# Compiling is over when so many updates in a row, of all kinds, have compiled nothing.
STEADY_UPDATES = 8
PROFILED = 2
KERNELS_SHOWN = 8


@dataclass(frozen=True)
class Limits:
    """Seconds of measuring, and of warming up before it, at most."""

    measured: float
    warming: float


def measure(
    trainer: Stage1Trainer, groups: int, limits: Limits, sampler: Sampler
) -> dict[str, Any]:
    """Images a second with batches of ``groups`` tasks."""
    use_groups(trainer, groups)
    device = trainer.processes.device
    found: dict[str, Any] = {"groups": groups, "compile": trainer.config.compile}
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        seconds, found["steady"] = _warm(trainer, limits.warming)
        found["warm_seconds"] = round(seconds, 1)
        updates, images = trainer.step, trainer.images
        began, wall = time.monotonic(), time.time()
        while time.monotonic() - began < limits.measured:
            step(trainer)
        wait(device)
    except torch.OutOfMemoryError:
        trainer.optimizer.zero_grad(set_to_none=True)
        return found | {"error": "out of memory"}
    seconds = time.monotonic() - began
    updates = trainer.step - updates
    return found | {
        "images_per_second": round((trainer.images - images) / seconds, 1),
        "ms_per_update": round(1000 * seconds / updates, 2),
        "plan_ms": round(_planning(trainer), 2),
        "gpu_busy_percent": sampler.busy(wall + 0.5),
        "gpu_watts": sampler.power(wall + 0.5),
        "peak_memory_mib": torch.cuda.max_memory_allocated() // 2**20 if cuda else None,
    }


def _warm(trainer: Stage1Trainer, most: float) -> tuple[float, bool]:
    """Seconds of warming up, and whether all is compiled: some updates compiled nothing new."""
    began = time.monotonic()
    graphs, quiet = _graphs(), 0
    wanted = STEADY_UPDATES if trainer.config.compile else WARM_UPDATES
    while time.monotonic() - began < most and quiet < wanted:
        step(trainer)
        wait(trainer.processes.device)
        before, graphs = graphs, _graphs()
        quiet = quiet + 1 if graphs == before else 0
    return time.monotonic() - began, quiet >= wanted


def _graphs() -> int:
    """How many graphs torch has compiled."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _planning(trainer: Stage1Trainer) -> float:
    """Milliseconds of the host to plan a batch."""
    began = time.monotonic()
    for number in range(PROFILED):
        trainer.generator.planner.plan(number)
    return 1000 * (time.monotonic() - began) / PROFILED


def kernels(trainer: Stage1Trainer, groups: int) -> dict[str, Any]:
    """Kernels an update, their share of the time, and the longest ones."""
    use_groups(trainer, groups)
    device = trainer.processes.device
    step(trainer)
    wait(device)
    cuda = device.type == "cuda"
    # Ops of the host are tens of thousands; on a GPU the kernels alone are looked at.
    activities = [ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]
    began = time.monotonic()
    with profile(activities=activities) as profiled:
        for _ in range(PROFILED):
            step(trainer)
        wait(device)
        seconds = time.monotonic() - began
    kind = "CUDA" if cuda else "CPU"
    rows = [
        (
            event.key,
            event.count,
            event.self_device_time_total if cuda else event.self_cpu_time_total,
        )
        for event in profiled.key_averages()
        # Spans that torch marks on its own hold kernels that are counted already.
        if event.device_type.name == kind and not event.key.startswith("Optimizer.")
    ]
    return {
        "groups": groups,
        "ms_per_update": round(1000 * seconds / PROFILED, 2),
        "kernels_per_update": round(sum(count for _, count, _ in rows) / PROFILED),
        "kernel_ms_per_update": round(sum(us for *_, us in rows) / 1000 / PROFILED, 2),
        "kernel_share": round(sum(us for *_, us in rows) / 1e6 / seconds, 3),
        "longest": [
            {
                "name": name[:80],
                "count": round(count / PROFILED, 1),
                "ms": round(us / 1000 / PROFILED, 3),
            }
            for name, count, us in sorted(rows, key=lambda row: -row[2])[:KERNELS_SHOWN]
        ],
    }
