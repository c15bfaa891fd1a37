"""How fast a trainer is, how busy it keeps the device, and what it spends its time on."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch._dynamo.utils
from torch.profiler import ProfilerActivity, profile

from gpu_jobs.gpu import Sampler
from gpu_jobs.steps import change, step, wait
from vessa_server.training.trainer import Stage1Trainer

WARM_UPDATES = 4
# Compiling is over when so many updates in a row, of all kinds, have compiled nothing.
STEADY_UPDATES = 8
KERNELS_SHOWN = 12


def measure(
    trainer: Stage1Trainer, groups: int, sampler: Sampler, *, seconds: float, warming: float
) -> dict[str, Any]:
    """Images a second with batches of ``groups`` tasks, in so many seconds.

    ``warming`` is how long updates go on before that, at most, until they are steady.
    """
    change(trainer, groups=groups)
    device = trainer.processes.device
    found: dict[str, Any] = {"groups": groups, "compile": trainer.config.compile}
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        found["warm_seconds"], found["steady"] = _warm(trainer, warming)
        updates, images = trainer.step, trainer.images
        began, wall = time.monotonic(), time.time()
        while time.monotonic() - began < seconds:
            step(trainer)
        wait(device)
    except torch.OutOfMemoryError:
        trainer.optimizer.zero_grad(set_to_none=True)
        return found | {"error": "out of memory"}
    taken = time.monotonic() - began
    if device.type == "cuda":
        found["peak_memory_mib"] = torch.cuda.max_memory_allocated() // 2**20
    return found | {
        "images_per_second": round((trainer.images - images) / taken, 1),
        "ms_per_update": round(1000 * taken / (trainer.step - updates), 2),
        **sampler.means(wall + 0.5),
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
    return round(time.monotonic() - began, 1), quiet >= wanted


def _graphs() -> int:
    """How many graphs torch has compiled."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def kernels(trainer: Stage1Trainer, groups: int) -> dict[str, Any]:
    """How many kernels an update is; those that take the longest are printed."""
    change(trainer, groups=groups)
    device = trainer.processes.device
    step(trainer)
    wait(device)
    cuda = device.type == "cuda"
    # Ops of the host are tens of thousands; on a GPU the kernels alone are looked at.
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiled:
        step(trainer)
        wait(device)
    events = profiled.key_averages()
    key = f"self_{'device' if cuda else 'cpu'}_time_total"
    print(events.table(sort_by=key, row_limit=KERNELS_SHOWN, max_name_column_width=60), flush=True)
    return {"groups": groups, "kernels": sum(event.count for event in events)}
