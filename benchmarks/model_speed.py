"""How long each step of the model takes, and what it computes and moves.

    python benchmarks/model_speed.py --threads 1 2 --variants
    python benchmarks/model_speed.py --preset base --device cuda --dtype bfloat16

Seconds of each step, median and least, for ``--images`` images of ``--classes`` classes with
``--templates`` templates each, its parameters, FLOPs, and bytes: of the parameters it reads, and of
all that its operations read and write, which fusing them would save. ``nano`` has the shipped
weights, other presets random ones of the published sizes. ``--variants`` times encode and decode in
channels_last, in bf16 and compiled as well. Writes
``benchmarks/results/model_speed_PRESET_DEVICE.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

from acdc import RESULTS, circumstances
from model_steps import Cost, Steps, Times, cost, timed
from vessa_client import files
from vessa_client.console import console
from vessa_server.api.settings import SHIPPED_WEIGHTS
from vessa_server.model import checkpoint
from vessa_server.model.presets import PRESETS, preset
from vessa_server.model.vessa import Vessa

VARIANTS = ("plain", "channels_last", "bf16 autocast", "bf16 weights", "compiled")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=list(PRESETS), default="nano")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--templates", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--variants", action="store_true", help="other layouts and precisions too")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    start = time.perf_counter()
    model = _model(arguments)
    loading = time.perf_counter() - start
    steps = Steps(model, arguments.images, arguments.classes, arguments.templates)
    costs = {name: cost(model, step) for name, step in steps.all().items()}
    calls = steps.all() | (_variants(arguments) if arguments.variants else {})
    times: dict[int, dict[str, Times]] = {}
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        times[threads] = timed(calls, arguments.repeats, model.student_embedding.device)
    _print(costs, times)
    plain = {k: v for k, v in vars(arguments).items() if isinstance(v, int | str | list)}
    report = {
        **circumstances(**plain),
        "device_name": _device_name(model),
        "parameters": sum(p.numel() for p in model.parameters()),
        "loading_seconds": loading,
        "steps": {name: asdict(found) for name, found in costs.items()},
        "seconds": {
            str(threads): {name: asdict(found) for name, found in by_name.items()}
            for threads, by_name in times.items()
        },
    }
    kind = torch.device(arguments.device).type
    file = arguments.out / f"model_speed_{arguments.preset}_{kind}.json"
    files.write_text(file, json.dumps(report, indent=2) + "\n")
    console.print(f"Results {file}", highlight=False)


def _variants(arguments: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Encode and decode in other layouts and precisions."""
    found: dict[str, Callable[[], Any]] = {}
    for name in VARIANTS:
        model = _model(arguments, torch.bfloat16 if name == "bf16 weights" else None)
        steps = Steps(model, arguments.images, arguments.classes, arguments.templates)
        if name == "channels_last":
            for module in model.modules():
                if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                    module.to(memory_format=torch.channels_last)
            steps.canvas = steps.canvas.contiguous(memory_format=torch.channels_last)
        for step in (steps.encode, steps.decode_with_student):
            call: Callable[[], Any] = torch.compile(step) if name == "compiled" else step
            if name == "bf16 autocast":
                kind = torch.device(arguments.device).type
                call = torch.autocast(kind, torch.bfloat16)(call)
            found[f"{step.__name__}, {name}"] = call
    return found


def _model(arguments: argparse.Namespace, dtype: torch.dtype | None = None) -> Vessa:
    config = preset(arguments.preset)
    wanted: dict[str, Any] = {
        "device": arguments.device,
        "dtype": dtype or getattr(torch, arguments.dtype),
    }
    shipped = SHIPPED_WEIGHTS / arguments.preset
    if shipped.is_dir():
        return checkpoint.load(config, shipped, **wanted).requires_grad_(False)
    return checkpoint.random(config, **wanted).requires_grad_(False)


def _device_name(model: Vessa) -> str:
    device = model.student_embedding.device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))


def _print(costs: dict[str, Cost], times: dict[int, dict[str, Times]]) -> None:
    table = Table("Step", "MB moved", "GFLOP", *(f"ms at {n} (least)" for n in times), box=None)
    for name in next(iter(times.values())):
        found = costs.get(name)
        row = (
            ["", ""]
            if found is None
            else [_short(found.moved_bytes / 1e6), _short(found.flops / 1e9)]
        )
        for by_name in times.values():
            taken = by_name[name]
            row.append(f"{_short(1e3 * taken.median)} ({_short(1e3 * taken.least)})")
        table.add_row(name, *row)
    console.print(table)


def _short(number: float) -> str:
    return f"{number:.3g}"


if __name__ == "__main__":
    main()
