"""How fast Stage 1 trains, and what an update of it does.

    python benchmarks/stage1_speed.py --pack PACK --threads 2
    python benchmarks/stage1_speed.py --pack PACK --threads 2 --before OTHER_CHECKOUT --data DATA

Images a second of the recipe `nano`, with the losses of the same batches in fp32 and bf16, kernels
and host syncs of an update (counted on the CPU: what a GPU's host would wait for). ``--before``
times the trainer of an older checkout, with a loader of its own, in turns with this one. Writes
``benchmarks/results/stage1_speed.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.table import Table

from acdc import RESULTS, ROOT, circumstances
from vessa_client import files
from vessa_client.console import console
from vessa_server.api.settings import SHIPPED_WEIGHTS
from vessa_server.training import config as configuration
from vessa_server.training import pack as packs
from vessa_server.training.run import build
from vessa_server.training.trainer import Stage1Trainer

sys.path.insert(0, str(ROOT / "tests"))
from support_syncs import counted_ops

# The trainer before episodes were made on the device; run in another checkout.
BEFORE = """
import json, sys, time
from pathlib import Path
import torch
from torch.utils.data import DataLoader
from vessa_server.training import config
from vessa_server.training.run import build
threads, data, init, updates = sys.argv[1:]
torch.set_num_threads(int(threads))
settings = config.load("nano", {"precision": "fp32"})
trainer = build(settings, Path(data), Path("unused"), init=Path(init))
batches = iter(DataLoader(trainer.dataset, batch_size=None, sampler=range(10**6), num_workers=1,
                          prefetch_factor=4))
trainer.train_step([next(batches)])
images, start = 0, time.perf_counter()
for _ in range(int(updates)):
    episode = next(batches)
    trainer.train_step([episode])
    images += len(episode.image_N3HW)
print(json.dumps(images / (time.perf_counter() - start)))
"""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2, help="turns, of which the best counts")
    parser.add_argument("--before", type=Path, help="checkout of an older commit")
    parser.add_argument("--data", type=Path, help="folder of the data sets, for --before")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found: dict[str, list[float]] = {}
    losses: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        trainers = {
            precision: _trainer(arguments.pack, Path(scratch) / precision, precision)
            for precision in ("fp32", "bf16")
        }
        for _ in range(arguments.rounds):
            if arguments.before:
                found.setdefault("before, fp32", []).append(_before(arguments))
            for name, trainer in trainers.items():
                rate, totals = _timed(trainer, arguments.updates)
                found.setdefault(f"now, {name}", []).append(rate)
                losses.setdefault(name, []).extend(totals)
        counts = {
            kind: _counted(trainers["fp32"], reads=kind == "with the VLM")
            for kind in ("with the VLM", "without")
        }
    table = Table("", "images/s", title=f"Stage 1, nano, {arguments.threads} threads")
    for name, rates in found.items():
        table.add_row(name, f"{max(rates):.1f}")
    console.print(table)
    console.print(counts)
    facts = circumstances(threads=arguments.threads, updates=arguments.updates)
    result = {**facts, "images_per_second": found, "losses": losses, "update": counts}
    file = RESULTS / "stage1_speed.json"
    files.write_text(file, json.dumps(result, indent=2) + "\n")
    console.print(f"Results {file}", highlight=False)


def _trainer(pack: Path, out: Path, precision: str) -> Stage1Trainer:
    settings = configuration.load("nano", {"precision": precision})
    return build(settings, packs.read(pack), out, init=SHIPPED_WEIGHTS / "nano")


def _timed(trainer: Stage1Trainer, updates: int) -> tuple[float, list[float]]:
    """Images a second, episodes made in the same thread; and the losses."""
    trainer.train_step([trainer.generator[trainer.step]])
    images, totals, start = trainer.images, [], time.perf_counter()
    for _ in range(updates):
        output = trainer.train_step([trainer.generator[trainer.step]])
        totals.append(output.total.detach())
    rate = (trainer.images - images) / (time.perf_counter() - start)
    return rate, [round(float(total), 4) for total in totals]


def _counted(trainer: Stage1Trainer, *, reads: bool) -> dict[str, object]:
    """Operations and host syncs of an update."""
    number = next(n for n in range(100) if trainer.generator.planner.plan(n).reads == reads)
    episode = trainer.generator[number]
    with counted_ops() as ops:
        trainer.train_step([episode])
    return {"operations": sum(ops.calls.values()), "syncs": dict(ops.syncs)}


def _before(arguments: argparse.Namespace) -> float:
    """Images a second of the older trainer, in a process of its own."""
    checkout = arguments.before.resolve()
    sources = ("proto/src", "services/vessa_server/src")
    environment = {**os.environ, "PYTHONPATH": ":".join(str(checkout / s) for s in sources)}
    words = [str(arguments.threads), str(arguments.data), str(SHIPPED_WEIGHTS / "nano")]
    run = subprocess.run(
        [sys.executable, "-c", BEFORE, *words, str(arguments.updates)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(run.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
