"""How much longer a training takes with VESSA: beside it on one machine, and on one of its own.

    python benchmarks/ssl_overhead.py acdc_patient100 --data DATA --out WORK --seed 3

Three trainings of one task, one after the other, each on one thread: UniMatch V2 alone; with VESSA,
which works on another core of the same machine and whose answers are kept in memory; and the same
training once more, which is answered from memory. What the last one takes is what a training costs
whose server has a machine of its own and is fast enough: the trainer's own part, the transport, and
no work of a model beside it. Both trainings with VESSA must come to the same weights, bit for bit.
Let nothing else run. Writes ``benchmarks/results/ssl_overhead_TASK.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from acdc import RESULTS, circumstances
from ssl_arms import curves, run_trainer
from ssl_cells import TASK_NAMES, Facts, Task
from ssl_trainer.unimatch.state import BEST_FILE
from vessa_client import files
from vessa_client.console import console
from vessa_server.api.run import Ports, build_engines, serve
from vessa_server.api.settings import ServerSettings
from vessa_server.engine import VessaEngine
from vessa_server.inference.look import AnyLook, Look, Prediction

ALONE, BESIDE, OF_ITS_OWN = "UniMatch V2", "VESSA on the other core", "VESSA on its own machine"


class KeepingEngine(VessaEngine):
    """Keeps every prediction, and gives the kept ones once ``replay`` is set."""

    replay = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._kept: dict[str, Prediction] = {}
        self.asked = 0
        self.computed = 0

    def run(self, looks: Sequence[AnyLook], pause: Callable[[], object] = bool) -> list[Prediction]:
        """The kept predictions, and computed ones where there is none."""
        keys = [self._key(look) for look in looks]
        self.asked += len(keys)
        missing = [i for i, key in enumerate(keys) if not (self.replay and key in self._kept)]
        self.computed += len(missing)
        predictions = super().run([looks[i] for i in missing], pause)
        for index, prediction in zip(missing, predictions, strict=True):
            self._kept[keys[index]] = prediction
        return [self._kept[key] for key in keys]

    @staticmethod
    def _key(look: AnyLook) -> str:
        """Of all that a prediction depends on."""
        assert isinstance(look, Look), "templates are encoded by requests here"
        digest = hashlib.sha256(repr(look.condition_key).encode())
        if look.prompt_CHW is not None:
            digest.update(look.prompt_CHW.tobytes())
        return digest.hexdigest()


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=TASK_NAMES)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="empty folder for the trainings")
    parser.add_argument("--cases", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="updates, in place of the task's")
    arguments = parser.parse_args()
    if arguments.out.exists() and any(arguments.out.iterdir()):
        parser.error(f"--out: {arguments.out} is not empty; a training would go on")
    results = asyncio.run(measure(Task.load(arguments.task, arguments.data), arguments))
    show(results)
    if results[BESIDE]["student"] != results[OF_ITS_OWN]["student"]:
        sys.exit("The trainings with VESSA differ, so that their times do not compare.")
    facts = circumstances(cases=arguments.cases, seed=arguments.seed)
    file = RESULTS / f"ssl_overhead_{arguments.task}.json"
    files.write_text(file, json.dumps({**facts, "results": results}, indent=1) + "\n")
    console.print(f"Results {file}", highlight=False)


async def measure(task: Task, arguments: argparse.Namespace) -> dict[str, Facts]:
    """The three trainings, and what they say about themselves."""
    settings = ServerSettings(
        bank=arguments.out / "bank",
        cache=str(arguments.out / "cache"),
        grpc_port=0,
        http_port=0,
        encode_bank=False,
        threads=1,
    )
    (plain,) = build_engines(settings)
    engine = KeepingEngine(plain.runtime, plain.banks, plain.cache, plain.settings)
    for image, labels, name in task.templates(arguments.cases):
        engine.bank.add(image, labels, task.classes, name=name)
    stop = asyncio.Event()
    ready: asyncio.Future[Ports] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as group:
        group.create_task(serve([engine], settings, stop=stop, on_ready=ready.set_result))
        target = f"127.0.0.1:{(await ready).grpc}"
        results = {ALONE: await asyncio.to_thread(train, task, "unimatch", "", arguments)}
        for name in (BESIDE, OF_ITS_OWN):
            engine.replay = name == OF_ITS_OWN
            before = engine.asked, engine.computed
            found = await asyncio.to_thread(train, task, "mutual", target, arguments, name=name)
            found["answers"] = engine.asked - before[0]
            found["computed"] = engine.computed - before[1]
            results[name] = found
        stop.set()
    for found in results.values():
        found["times"] = found["seconds"] / results[ALONE]["seconds"]
    return results


def train(
    task: Task, arm: str, server: str, arguments: argparse.Namespace, *, name: str = ALONE
) -> Facts:
    """One training: its seconds, stages, and a digest of its weights."""
    cell = task.cell(arm, arguments.cases, arguments.seed, arguments.steps)
    folder = arguments.out / name.replace(" ", "-").lower()
    file = folder / "input.yaml"
    files.write_text(file, yaml.safe_dump(cell.config, sort_keys=False))
    asked = ("--server", server) if server else ()
    start = time.perf_counter()
    command = ("train", str(file), "--out", str(folder), "--threads", "1", *asked)
    run_trainer(*command, log=folder / "cell.log")
    # One window, as long as the run.
    means = curves(folder / "log.jsonl", cell.config["steps"])
    return {
        "steps": cell.config["steps"],
        "seconds": time.perf_counter() - start,
        "student": hashlib.sha256((folder / BEST_FILE).read_bytes()).hexdigest(),
        "stages": {n: values[0] for n, values in means.items() if n.startswith("seconds/")},
    }


def show(results: dict[str, Facts]) -> None:
    """Print the table."""
    table = Table("", "seconds", "times", "answers", "computed", "student")
    for name, found in results.items():
        asked = [str(found.get(key, "")) for key in ("answers", "computed")]
        seconds, times = f"{found['seconds']:.0f}", f"{found['times']:.3f}"
        table.add_row(name, seconds, times, *asked, found["student"][:8])
    console.print(table)


if __name__ == "__main__":
    main()
