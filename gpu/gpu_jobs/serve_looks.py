"""How long batches of looks take, step by step, through the runtime as the engine calls it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from gpu_jobs.jobs import rehearsal
from model_steps import wait
from vessa_server.runtime.clock import StageClock
from vessa_server.runtime.protocol import Conditioning, Decoding, Floats
from vessa_server.runtime.torch_runtime import TorchRuntime

CLASSES, TEMPLATES = 3, 7
BATCHES, SECONDS, LEAST_CALLS = (1, 2, 4, 8, 16), 0.5, 3
SMALL_BATCHES, SMALL_SECONDS, SMALL_CALLS = (1, 2), 0.0, 1
MIB = 2**20
PROMPT = "Segment the left ventricle. Cavity inside the muscle ring."


def measure(runtime: TorchRuntime) -> dict[str, Any]:
    """Milliseconds of each operation for batches of looks at as many images."""
    batches = SMALL_BATCHES if rehearsal() else BATCHES
    looks = _Looks(runtime, max(batches))
    rows = []
    for count in batches:
        times, peak = {}, 0
        for name, call in looks.calls(count).items():
            times[name] = _median_ms(call, runtime.device)
            peak = max(peak, _peak(call, runtime))
        cold = times["encode"] + times["similarity"] + times["condition"] + times["decode"]
        row: dict[str, Any] = {
            "looks": count,
            "cold_per_second": round(1e3 * count / cold, 2),
            "warm_per_second": round(1e3 * count / times["decode with student"], 2),
            "ms": {name: round(ms, 3) for name, ms in times.items()},
        }
        if runtime.device.type == "cuda":
            row["peak_mib"] = peak // MIB
        rows.append(row)
    prefix = _median_ms(looks.read_template, runtime.device)
    budget = {step: taken // MIB for step, taken in runtime.budget.item_bytes.items()}
    return {"looks": rows, "prefix_ms": round(prefix, 3), "mib_of_a_row": budget}


def _peak(call: Callable[[], object], runtime: TorchRuntime) -> int:
    """Most bytes in use during a call, without the meter, which resets the device's own count."""
    if runtime.device.type != "cuda":
        return 0
    meter, runtime.budget.meter = runtime.budget.meter, None
    try:
        torch.cuda.reset_peak_memory_stats(runtime.device)
        call()
        return torch.cuda.max_memory_allocated(runtime.device)
    finally:
        runtime.budget.meter = meter


class _Looks:
    """Random images, a template's features for each class, and prompts."""

    def __init__(self, runtime: TorchRuntime, most: int) -> None:
        self.runtime, self.clock = runtime, StageClock()
        side = runtime.info.canvas
        rng = np.random.default_rng(0)
        self.canvases = [rng.random((1, side, side), np.float32) for _ in range(most)]
        annotated = runtime.encode(self.canvases[:1], self.clock)[0]
        masks = [np.zeros((side, side), np.bool_) for _ in range(CLASSES)]
        for index, mask_HW in enumerate(masks):
            mask_HW[side // 4 : side // 2, (1 + index) * side // 8 : side // 2] = True
        described = runtime.describe([annotated] * CLASSES, masks, self.clock)
        self.templates = [[d.handle] * TEMPLATES for d in described]
        embeddings = [np.stack([d.embedding_2D] * TEMPLATES) for d in described]
        self.index = runtime.index(np.stack(embeddings))
        self.overlay: Floats = rng.random((3, side, side), np.float32)
        self.prefixes = runtime.prefix([self.overlay] * CLASSES, [PROMPT] * CLASSES)
        self.student = np.full((CLASSES, side // 2, side // 2), 0.5, np.float32)

    def read_template(self) -> object:
        """What the VLM reads before it sees an image, for one class."""
        return self.runtime.prefix([self.overlay], [PROMPT])

    def calls(self, count: int) -> dict[str, Callable[[], object]]:
        """The operations of ``count`` looks, each on what those before it gave."""
        runtime, clock = self.runtime, self.clock
        canvases = self.canvases[:count]
        images = runtime.encode(canvases, clock)
        seen = runtime.encode(canvases, clock, read=True)
        items = [Conditioning(image, self.templates) for image in images]
        read = [Conditioning(image, self.templates, self.prefixes) for image in seen]
        conditioned = list(zip(images, runtime.condition(items, clock), strict=True))
        plain = [Decoding(image, found) for image, found in conditioned]
        prompted = [Decoding(image, found, self.student) for image, found in conditioned]
        return {
            "encode": lambda: runtime.encode(canvases, clock),
            "encode and see": lambda: runtime.encode(canvases, clock, read=True),
            "similarity": lambda: runtime.similarity(images, self.index, clock),
            "condition": lambda: runtime.condition(items, clock),
            "condition and reason": lambda: runtime.condition(read, clock),
            "decode": lambda: runtime.decode(plain, clock),
            "decode with student": lambda: runtime.decode(prompted, clock),
        }


def _median_ms(call: Callable[[], object], device: torch.device) -> float:
    seconds, least = (SMALL_SECONDS, SMALL_CALLS) if rehearsal() else (SECONDS, LEAST_CALLS)
    call()
    taken: list[float] = []
    while len(taken) < least or sum(taken) < seconds:
        wait(device)
        began = time.perf_counter()
        call()
        wait(device)
        taken.append(time.perf_counter() - began)
    return 1e3 * statistics.median(taken)
