"""How a server and others share the cores of one machine without a GPU.

    python benchmarks/shared_cores.py                       # some six minutes on two cores

``training``: seconds of some updates of a training beside the server that helps it, both on this
machine, by the threads of each. ``spinning``: how long a student's mask takes, alone and beside as
many busy programs as there are cores, by how long torch's threads spin before they sleep
(``GOMP_SPINCOUNT``; OpenMP's own default is 300,000). The sample that comes with the project.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from acdc import RESULTS, ROOT, circumstances
from client_load import Figures, clicks, milliseconds
from served import SAMPLE, Images, serving
from vessa_client import VessaClient, files
from vessa_client.console import console

UPDATES, CLICKS = 120, 150
SPINS = (300_000, 3_000, 100)


def training(server: int, trainer: int) -> float:
    """Seconds of a training of :data:`UPDATES` updates, its start and one validation included."""
    config = yaml.safe_load((ROOT / "examples" / "acdc.yaml").read_text())
    config["data"]["root"] = str(SAMPLE)
    config |= {"steps": UPDATES, "validate_every": UPDATES}
    with tempfile.TemporaryDirectory() as scratch, serving(SAMPLE, server) as served:
        file = Path(scratch) / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "ssl_trainer", "train", str(file)]
        command += ["--out", f"{scratch}/run", "--server", served.target]
        started = time.perf_counter()
        subprocess.run([*command, "--threads", str(trainer)], check=True, capture_output=True)
        return round(time.perf_counter() - started, 1)


def spinning(spins: int, threads: int, *, busy: int) -> Figures:
    """Milliseconds of a student's mask, beside ``busy`` programs that compute."""
    os.environ["GOMP_SPINCOUNT"] = str(spins)
    try:
        with serving(SAMPLE, threads) as served, VessaClient(served.target) as client:
            click = clicks(client, Images.of(SAMPLE / "val"))
            with _programs(busy):
                return milliseconds(click, CLICKS)
    finally:
        del os.environ["GOMP_SPINCOUNT"]


@contextmanager
def _programs(count: int) -> Iterator[None]:
    command = [sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def main() -> None:
    """Measure, show and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS / "shared_cores.json")
    arguments = parser.parse_args()
    cores = os.cpu_count() or 2
    half = max(1, cores // 2)
    found: Figures = {
        **circumstances(cores=cores),
        "updates": UPDATES,
        "training": [],
        "spinning": [],
    }
    for server, trainer in ((cores, cores), (half, cores), (half, half)):
        row = {"server": server, "trainer": trainer, "seconds": training(server, trainer)}
        found["training"].append(row)
        console.print(row)
    for spins in SPINS:
        for busy in (0, cores):
            row = {"spins": spins, "busy": busy, **spinning(spins, cores, busy=busy)}
            found["spinning"].append(row)
            console.print(row)
    files.write_text(arguments.results, json.dumps(found, indent=1) + "\n")
    console.print(f"Results {arguments.results}", highlight=False)


if __name__ == "__main__":
    main()
