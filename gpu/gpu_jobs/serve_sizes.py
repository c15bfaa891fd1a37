"""Models of the published sizes with random weights: memory, steps, batches of looks, and images.

Axes: C classes, K templates of a class, H W space.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gpu_jobs import roofline, serve_images, serve_looks
from gpu_jobs.jobs import rehearsal
from gpu_jobs.parts import WIDTH, Parts
from gpu_jobs.roofline import Peaks
from model_steps import Steps, cost, timed
from vessa_server.model import checkpoint
from vessa_server.model.presets import preset
from vessa_server.model.vessa import Vessa
from vessa_server.runtime.devices import resolve_dtype
from vessa_server.runtime.torch_runtime import TorchRuntime
from vessa_server.runtime.warm_up import warm_up

CLASSES, TEMPLATES = 3, 7
# Images of the steps one by one, and how often each is timed.
IMAGES, REPEATS = (1, 8), 6
SMALL_IMAGES, SMALL_REPEATS = (1,), 1
MIB = 2**20


@dataclass(frozen=True)
class Measured:
    """A size: its name, the preset that is made, and seconds that each part of it needs."""

    name: str
    preset: str
    needed: float


def run(smoke: Parts, size: Measured, peaks: Peaks | None) -> None:
    """Make it, measure it, and let it go."""
    made: list[TorchRuntime] = []
    smoke.part(f"{size.name} made", size.needed, lambda: _make(smoke, size, made))
    if not made:
        return
    runtime, folder = made[0], smoke.context.run / f"{size.name} bank"
    for images in SMALL_IMAGES if rehearsal() else IMAGES:
        work = _steps(runtime.model, images, peaks)
        smoke.part(f"{size.name} steps x{images}", size.needed, work)
    smoke.part(f"{size.name} looks", size.needed, lambda: serve_looks.measure(runtime))
    smoke.part(f"{size.name} images", size.needed, lambda: serve_images.measure(runtime, folder))


def _make(smoke: Parts, size: Measured, made: list[TorchRuntime]) -> dict[str, Any]:
    """Random weights, made on the device, and what they take there."""
    device = smoke.context.device
    release(device)
    began = time.perf_counter()
    dtype = resolve_dtype("auto", device)
    model = checkpoint.random(preset(size.preset), device=device, dtype=dtype)
    seconds = time.perf_counter() - began
    weights = list(model.parameters())
    found = {
        "preset": size.preset,
        "dtype": str(dtype).removeprefix("torch."),
        "seconds": round(seconds, 2),
        "parameters": sum(p.numel() for p in weights),
        "parameter_mib": sum(p.nbytes for p in weights) // MIB,
        **memory(device),
    }
    runtime = TorchRuntime(model, "0" * 64)
    found["warm_up_ms"] = {n: round(ms, 1) for n, ms in warm_up(runtime).items()}
    made.append(runtime)
    return found


def _steps(model: Vessa, images: int, peaks: Peaks | None) -> Callable[[], dict[str, Any]]:
    """Each step of ``images`` images, its cost and its share of what the device could do."""

    def work() -> dict[str, Any]:
        device = model.student_embedding.device
        with torch.no_grad():  # in inference mode not all operations are counted
            release(device)
            steps = Steps(model, images, CLASSES, TEMPLATES).all()
            costs = {name: cost(model, step) for name, step in steps.items()}
            times = timed(steps, SMALL_REPEATS if rehearsal() else REPEATS, device)
        rows = {name: roofline.row(costs[name], times[name], peaks) for name in steps}
        return {"images": images, "steps": rows, **memory(device)}

    return work


def memory(device: torch.device) -> dict[str, int]:
    """Of a GPU: allocated now, the most since :func:`release`, and what the allocator holds."""
    if device.type != "cuda":
        return {}
    return {
        "allocated_mib": torch.cuda.memory_allocated(device) // MIB,
        "peak_mib": torch.cuda.max_memory_allocated(device) // MIB,
        "reserved_mib": torch.cuda.memory_reserved(device) // MIB,
    }


def release(device: torch.device) -> None:
    """Give back what nobody refers to, and begin to look at the most that is taken."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def table(found: dict[str, Any]) -> list[str]:
    """Rows of the last table."""
    lines: list[str] = []
    for name, part in found.items():
        rows = []
        if "parameters" in part:
            rows = ["{parameters} parameters in {seconds} s".format(**part)]
            rows += [f"{key} {part[key]}" for key in ("allocated_mib", "peak_mib") if key in part]
            rows = [", ".join(rows)]
        rows += [_step(step, row) for step, row in part.get("steps", {}).items()]
        rows += [_looks(row) for row in part.get("looks", ())]
        if "together" in part:
            rows.append(_images(part))
        lines += [f"{name:<{WIDTH}}{row}" for row in rows]
    return lines


def _step(name: str, row: dict[str, Any]) -> str:
    return f"{name:<20}{row['ms']} ms, {row.get('share')} of {row.get('bound_by')}"


def _looks(row: dict[str, Any]) -> str:
    rates = "{looks} together: {cold_per_second} new, {warm_per_second} masks a second"
    return rates.format(**row)


def _images(part: dict[str, Any]) -> str:
    kinds = ("first", "cold", "student_mask", "nothing_new", "text")
    alone = ", ".join(
        f"{kind} {part[f'{kind}_ms']['p50']} ms in {part[f'{kind}_looks']:g} looks"
        for kind in kinds
    )
    return f"{alone}; together {part['cold_per_second']} new a second"
