"""What a tritonserver between the server and its model costs, beside the same in one process.

It is on this machine, has the shipped weights (docker/triton/README.md), and as many threads:

    OMP_NUM_THREADS=1 tritonserver --model-repository=docker/triton/models
    OMP_NUM_THREADS=1 python benchmarks/triton_overhead.py    # under a minute
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from acdc import RESULTS, circumstances
from vessa_client import files
from vessa_client.console import console
from vessa_server.api.settings import SHIPPED_WEIGHTS
from vessa_server.runtime.clock import StageClock
from vessa_server.runtime.loading import load_runtime, stored_config
from vessa_server.runtime.protocol import Conditioning, Decoded, Decoding, Floats, Runtime
from vessa_server.runtime.triton import connection
from vessa_server.runtime.triton.client import TritonRuntime

CLASSES, CALLS, WARM_CALLS = 3, 200, 10
Call = Callable[[], object]


def calls_of(runtime: Runtime) -> tuple[dict[str, Call], Decoded]:
    """What is measured, by name, and masks to compare."""
    clock, side = StageClock(), runtime.info.canvas
    rng = np.random.default_rng(0)
    canvas: Floats = rng.random((1, side, side), np.float32)
    mask_HW = np.zeros((side, side), np.bool_)
    mask_HW[side // 4 : side // 2, side // 4 : side // 2] = True
    image = runtime.encode([canvas], clock)[0]
    template = runtime.describe([image], [mask_HW], clock)[0].handle
    conditioned = runtime.condition([Conditioning(image, [[template]] * CLASSES)], clock)[0]
    student_CHW: Floats = rng.random((CLASSES, side // 2, side // 2), np.float32)
    # As large as a canvas of the preset `base`: nothing is computed, only kept.
    large = rng.random((1, 1, 1, 1024 * 1024), np.float32)
    found = {
        "encode": lambda: runtime.encode([canvas], clock),
        "decode": lambda: runtime.decode([Decoding(image, conditioned)], clock),
        "decode with a student's mask": lambda: runtime.decode(
            [Decoding(image, conditioned, student_CHW)], clock
        ),
        "send 4 MiB": lambda: runtime.index(large),
    }
    return found, runtime.decode([Decoding(image, conditioned)], clock)[0]


def measure(calls: dict[str, Call]) -> dict[str, dict[str, float]]:
    """Milliseconds of each call, taken in turn: others use the machine, too."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(WARM_CALLS + CALLS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    found = {}
    for name, values in seconds.items():
        p50, p99 = np.percentile(1000 * np.array(values[WARM_CALLS:]), (50, 99))
        found[name] = {"p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3)}
    return found


def main() -> None:
    """Measure, show and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--server", default="triton://127.0.0.1:8001", help="its gRPC port")
    parser.add_argument("--results", type=Path, default=RESULTS / "triton_overhead.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = SHIPPED_WEIGHTS / "nano"
    here = load_runtime(
        stored_config(folder), folder, adaptation=None, device="cpu", dtype="auto", max_batch=32
    )
    shared = TritonRuntime(arguments.server)
    connection.LOCAL = ()  # from here on every tritonserver is far away
    sent = TritonRuntime(arguments.server)
    runtimes: dict[str, Runtime] = {
        "in-process": here,
        "triton, shared memory": shared,
        "triton, gRPC alone": sent,
    }
    calls, masks = {}, {}
    for name, runtime in runtimes.items():
        calls[name], masks[name] = calls_of(runtime)
    found = {
        what: measure({name: calls[name][what] for name in runtimes})
        for what in calls["in-process"]
    }
    difference = max(
        float(np.abs(masks["in-process"].logits_CHW - one.logits_CHW).max())
        for one in masks.values()
    )
    table = Table("p50 / p99 ms", *runtimes)
    for what, by_runtime in found.items():
        table.add_row(
            what, *(f"{t['p50_ms']:.2f} / {t['p99_ms']:.2f}" for t in by_runtime.values())
        )
    console.print(table)
    facts = circumstances(calls=CALLS, digest=here.info.model_digest, device=here.info.device)
    results = {**facts, "largest_difference_of_logits": difference, "milliseconds": found}
    files.write_text(arguments.results, json.dumps(results, indent=2) + "\n")
    console.print(f"Results {arguments.results}", highlight=False)
    for runtime in runtimes.values():
        runtime.close()


if __name__ == "__main__":
    main()
