"""What an update of Stage 2 costs on this CPU, in fp32 and bf16, with all it can do and with AVX2.

    python benchmarks/ssl_speed.py
    python benchmarks/ssl_speed.py --before OTHER_CHECKOUT --kinds fp32

UniMatch V2 on whole slices of ``examples/acdc-sample``, by the command that users call, on one
thread: CPU seconds of a long training without those of a short one, whatever both share. Kinds take
turns, and the median of the rounds counts; where bf16 is emulated, it takes an hour. ``--before``
times the trainer of an older checkout in turns with this one. Adds to
``benchmarks/results/ssl_speed.json``, in place of what it says of the same processor.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from rich.table import Table

from acdc import RESULTS, ROOT, circumstances
from ssl_processes import processor
from ssl_tasks import Facts
from vessa_client import files
from vessa_client.console import console, progress_bar

SHORT, LONG = 10, 60
# Updates of the recipe.
USUAL = 2500
# What a CPU without AVX-512 does.
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
KINDS = {
    "fp32": ("fp32", {}),
    "bf16": ("bf16", {}),
    "fp32, AVX2": ("fp32", AVX2),
}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--before", type=Path, help="checkout of an older commit")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    arguments = parser.parse_args()
    checkouts = {"now": ROOT} | ({"before": arguments.before} if arguments.before else {})
    found: dict[str, dict[str, list[float]]] = {
        kind: {name: [] for name in checkouts} for kind in arguments.kinds
    }
    with progress_bar() as progress:
        total = arguments.rounds * len(found) * len(checkouts)
        task = progress.add_task("Trainings", total=total, note="")
        for _ in range(arguments.rounds):
            for kind in found:
                precision, environment = KINDS[kind]
                for name, checkout in checkouts.items():
                    seconds = update_seconds(checkout, precision, environment)
                    found[kind][name].append(seconds)
                    progress.advance(task)
    rows = {kind: _row(times) for kind, times in found.items()}
    show(rows)
    file = RESULTS / "ssl_speed.json"
    known: Facts = json.loads(file.read_text()) if file.is_file() else {}
    capability = torch.backends.cpu.get_cpu_capability()
    known[f"{processor()}, {capability}"] = {**circumstances(), "updates": rows}
    files.write_text(file, json.dumps(known, indent=2) + "\n")


def update_seconds(checkout: Path, precision: str, environment: dict[str, str]) -> float:
    """CPU seconds of an update."""
    short, long = (_training(checkout, precision, environment, n) for n in (SHORT, LONG))
    return (long - short) / (LONG - SHORT)


def _training(checkout: Path, precision: str, environment: dict[str, str], steps: int) -> float:
    """CPU seconds of a training of the example."""
    example = ROOT / "examples" / "acdc.yaml"
    config = yaml.safe_load(example.read_text())
    config["data"]["root"] = str(example.parent / config["data"]["root"])
    config |= {"steps": steps, "validate_every": steps, "precision": precision}
    if checkout == ROOT:
        config["regions"] = False  # or two trainings of a locator would be subtracted
    services = [f"services/{name}/src" for name in ("vessa_common", "vessa_server", "ssl_trainer")]
    code = [str(checkout / folder) for folder in ("proto/src", *services)]
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        command = ["-m", "ssl_trainer", "train", str(file), "--out", scratch, "--threads", "1"]
        before = _spent()
        subprocess.run(
            [sys.executable, *command],
            env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(code)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
    return _spent() - before


def _spent() -> float:
    """CPU seconds of all trainings so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _row(times: dict[str, list[float]]) -> Facts:
    """Medians; how many times faster now, by rounds."""
    row: Facts = {f"{name}_ms": round(1000 * statistics.median(t), 1) for name, t in times.items()}
    row["training_minutes"] = round(USUAL * row["now_ms"] / 60_000, 1)
    if "before" in times:
        pairs = zip(times["before"], times["now"], strict=True)
        row["times_faster"] = [round(before / now, 2) for before, now in pairs]
    return row


def show(rows: dict[str, Facts]) -> None:
    """Print the table."""
    table = Table(
        "", "ms of an update", f"minutes of {USUAL:,} updates", "times faster than before"
    )
    for kind, row in rows.items():
        faster = row.get("times_faster")
        ratio = f"{statistics.median(faster):.2f}" if faster else "-"
        table.add_row(kind, f"{row['now_ms']:.0f}", f"{row['training_minutes']:.1f}", ratio)
    console.print(table)


if __name__ == "__main__":
    main()
