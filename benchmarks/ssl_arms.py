"""UniMatch V2 with and without VESSA, cell by cell.

    python benchmarks/ssl_arms.py run acdc --data DATA --out CELLS --arms unimatch mutual
    python benchmarks/ssl_arms.py table acdc --data DATA --out CELLS
    python benchmarks/ssl_arms.py table acdc --data DATA --out CELLS --test

A cell is one training of one arm, number of labelled cases, and seed, on one thread; ``--workers``
of them run side by side. A cell that is done is kept, one that was cut off goes on.
``--equal-time`` trains arms with VESSA for fewer updates, so that they take as long as UniMatch V2
alone did: both must be done before, for the same cases and seeds. Students are chosen on
validation patients; ``--test`` scores the chosen students of finished cells, once. Tasks are files
of ``benchmarks/tasks``. Writes ``benchmarks/results/ssl_TASK.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from rich.table import Table

from acdc import RESULTS, circumstances
from ssl_trainer.config import parse, to_dict
from ssl_trainer.data.cases import Case, find
from vessa_client import ClassDefinition, VessaClient, files
from vessa_client.console import console

TASKS = Path(__file__).parent / "tasks"
CELL = "cell.json"
# What an arm changes, and which server it asks: none, VESSA, or one fitted to the bank.
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "supervised": ("", {"unimatch": {"weight": 0.0}}),
    "unimatch": ("", {}),
    "one-way": ("plain", {"assistant": {"feedback_start": 1.0}}),
    "mutual": ("plain", {}),
    "mutual-teacher": ("plain", {"assistant": {"feedback_from": "teacher"}}),
    "mutual-adapted": ("adapted", {}),
    "mutual-constant": ("plain", {"assistant": {"weight_end": 1.0}}),
    "mutual-unweighted": ("plain", {"assistant": {"confidence_weighting": False}}),
}


@dataclass(frozen=True)
class Task:
    """A data set, its classes, its labelled subsets, and what all arms share."""

    name: str
    root: Path
    classes: tuple[ClassDefinition, ...]
    labelled: dict[int, list[str]]
    train: dict[str, Any]
    # UniMatch V2 alone with other settings: what the ones that all arms share were chosen from.
    variants: dict[str, dict[str, Any]]

    @staticmethod
    def load(name: str, data: Path) -> Task:
        """Read a task's file."""
        content = yaml.safe_load((TASKS / f"{name}.yaml").read_text())
        classes = tuple(ClassDefinition(**c) for c in content["classes"])
        root = (data / content["folder"]).resolve()
        variants = content.get("variants", {})
        return Task(name, root, classes, content["labelled"], content["train"], variants)

    def arm(self, name: str) -> tuple[str, dict[str, Any]]:
        """Which server an arm asks, and what it changes."""
        return ARMS[name] if name in ARMS else ("", self.variants[name])

    def config(self, cell: Cell, server: str | None, steps: int | None) -> dict[str, Any]:
        """The configuration of a cell, every key of it."""
        data = {
            "root": str(self.root),
            "classes": [c.name for c in self.classes],
            "labelled": self.labelled[cell.cases],
        }
        own: dict[str, Any] = {"data": data, "seed": cell.seed, "assistant": {"server": server}}
        if steps is not None:
            own["steps"] = steps
        return to_dict(parse(_merged(_merged(self.train, own), self.arm(cell.arm)[1])))

    def labelled_cases(self, cases: int) -> tuple[Case, ...]:
        """Those that fill the template bank."""
        cell = Cell("unimatch", cases, 0)
        return find(parse(self.config(cell, None, None)).data).labelled


@dataclass(frozen=True)
class Cell:
    """One training."""

    arm: str
    cases: int
    seed: int
    equal_time: bool = False

    @property
    def label(self) -> str:
        """The arm as tables and folders name it."""
        return f"{self.arm}-equal-time" if self.equal_time else self.arm

    def folder(self, out: Path) -> Path:
        """Where it is kept."""
        return out / f"cases_{self.cases}" / self.label / f"seed_{self.seed}"

    def affordable_steps(self, out: Path) -> int:
        """Updates of this arm in the time of UniMatch V2 alone."""
        rival = Cell("unimatch", self.cases, self.seed).facts(out)
        own = Cell(self.arm, self.cases, self.seed).facts(out)
        share = rival["seconds"] / rival["steps"] / (own["seconds"] / own["steps"])
        return int(rival["steps"] * min(1.0, share))

    def facts(self, out: Path) -> dict[str, Any]:
        """What a finished cell told."""
        file = self.folder(out) / CELL
        if not file.is_file():
            sys.exit(f"--equal-time: {file} is missing; train {self.label} first")
        facts: dict[str, Any] = json.loads(file.read_text())
        if facts["resumed"]:
            sys.exit(f"--equal-time: {file} was cut off once, so its time is not known")
        return facts


def main() -> None:
    """Train cells, or show them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("task", choices=sorted(file.stem for file in TASKS.glob("*.yaml")))
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the cells")
    parser.add_argument("--arms", nargs="+", default=["unimatch", "mutual"], help="or variants")
    parser.add_argument("--cases", type=int, nargs="+", help="all of the task by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="updates, in place of the task's")
    parser.add_argument("--equal-time", action="store_true", help="as long as UniMatch V2 alone")
    parser.add_argument("--workers", type=int, default=2, help="cells side by side")
    parser.add_argument("--adaptation", type=Path, help="file of `vessa-server adapt`")
    parser.add_argument("--test", action="store_true", help="score chosen students on test")
    arguments = parser.parse_args()
    task = Task.load(arguments.task, arguments.data)
    known = [*ARMS, *task.variants]
    for arm in arguments.arms:
        if arm not in known:
            parser.error(f"--arms: {arm!r}, expected some of {', '.join(known)}")
    if arguments.command == "run":
        for cases in arguments.cases or sorted(task.labelled):
            run(task, cases, arguments)
    else:
        show(task, arguments)


def run(task: Task, cases: int, arguments: argparse.Namespace) -> None:
    """Train the cells that are not done, side by side."""
    timed = arguments.equal_time
    cells = [Cell(arm, cases, seed, timed) for seed in arguments.seeds for arm in arguments.arms]
    todo = [cell for cell in cells if not (cell.folder(arguments.out) / CELL).is_file()]
    with contextlib.ExitStack() as stack:
        servers = {
            kind: stack.enter_context(_server(task, kind, cases, arguments))
            for kind in sorted({task.arm(cell.arm)[0] for cell in todo} - {""})
        }
        train = partial(_train, task=task, servers=servers, arguments=arguments)
        with ThreadPoolExecutor(arguments.workers) as pool:
            for cell in pool.map(train, todo):
                console.print(f"done: {cell}", highlight=False)


def _train(
    cell: Cell, *, task: Task, servers: dict[str, str], arguments: argparse.Namespace
) -> Cell:
    folder = cell.folder(arguments.out)
    steps = cell.affordable_steps(arguments.out) if cell.equal_time else arguments.steps
    config = task.config(cell, servers.get(task.arm(cell.arm)[0]), steps)
    file = folder / "input.yaml"
    resumed = file.is_file()
    files.write_text(file, yaml.safe_dump(config, sort_keys=False))
    start = time.perf_counter()
    _trainer("train", str(file), "--out", str(folder), "--threads", "1", log=folder / "cell.log")
    facts = {
        "arm": cell.label,
        "cases": cell.cases,
        "seed": cell.seed,
        "steps": config["steps"],
        "seconds": time.perf_counter() - start,
        # Then the seconds are those of the last start only.
        "resumed": resumed,
        **circumstances(),
    }
    files.write_text(folder / CELL, json.dumps(facts, indent=2) + "\n")
    return cell


@contextlib.contextmanager
def _server(task: Task, kind: str, cases: int, arguments: argparse.Namespace) -> Iterator[str]:
    """A server whose bank holds the labelled cases."""
    folder = arguments.out / f"cases_{cases}" / f"server_{kind}"
    folder.mkdir(parents=True, exist_ok=True)
    grpc_port, http_port = _free_ports(2)
    command = [
        *(sys.executable, "-m", "vessa_server", "serve", "--bank", str(folder / "bank")),
        *("--grpc-port", str(grpc_port), "--http-port", str(http_port)),
        *("--cache", str(folder / "cache")),
    ]
    if kind == "adapted":
        if arguments.adaptation is None:
            sys.exit("--adaptation: needed by an arm that asks an adapted VESSA")
        command += ["--adaptation", str(arguments.adaptation)]
    target = f"127.0.0.1:{grpc_port}"
    with (folder / "server.log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=_one_thread())
        try:
            with VessaClient(target) as client:
                while not client.healthy():
                    if process.poll() is not None:
                        sys.exit(f"The server stopped; see {log.name}")
                    time.sleep(0.2)
                _fill(client, task, cases)
            yield target
        finally:
            process.terminate()
            process.wait(30)


def _fill(client: VessaClient, task: Task, cases: int) -> None:
    """Add all annotated slices; those that are there already are known by their content."""
    for case in task.labelled_cases(cases):
        image = case.read()
        labels = case.read_labels(image, len(task.classes))
        assert labels is not None
        for index in range(image.depth):
            if labels.slice(index).any():
                name = f"{image.stem} slice {index}"
                client.add_template(
                    image.slice(index), labels.slice(index), task.classes, name=name
                )


def show(task: Task, arguments: argparse.Namespace) -> None:
    """Score the chosen students, print tables, and write the results."""
    splits = ("val", "test") if arguments.test else ("val",)
    found = []
    for file in sorted(arguments.out.glob(f"*/*/*/{CELL}")):
        cell = json.loads(file.read_text())
        for split in splits:
            scores = file.parent / f"scores_{split}.json"
            if not scores.is_file() and (task.root / split).is_dir():
                _trainer(
                    "evaluate", str(file.parent), "--split", split, log=file.parent / "cell.log"
                )
            if scores.is_file():
                cell[split] = json.loads(scores.read_text())
        found.append(cell)
    names = [c.name for c in task.classes]
    for split in splits:
        console.print(_table(found, split, names))
    result = RESULTS / f"ssl_{task.name}.json"
    content = {**circumstances(), "classes": names, "cells": found}
    files.write_text(result, json.dumps(content, indent=1) + "\n")
    console.print(f"Results {result}", highlight=False)


def _table(cells: Sequence[dict[str, Any]], split: str, names: Sequence[str]) -> Table:
    """Dice over the volumes of a split, mean ± deviation over seeds."""
    table = Table("cases", "arm", "seeds", *names, "mean", title=f"Dice, {split}")
    groups: dict[tuple[int, str], list[Any]] = {}
    for cell in cells:
        if split in cell:
            groups.setdefault((cell["cases"], cell["arm"]), []).append(cell[split])
    for (cases, arm), runs in sorted(groups.items()):
        dice = np.array([np.mean([v["dice"] for v in volumes], axis=0) for volumes in runs])
        columns = [*dice.T, dice.mean(axis=1)]
        table.add_row(str(cases), arm, str(len(runs)), *(_mean_sd(c) for c in columns))
    return table


def _mean_sd(values: npt.NDArray[np.float64]) -> str:
    spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{spread}"


def _trainer(*command: str, log: Path) -> None:
    with log.open("a") as stream:
        subprocess.run(
            [sys.executable, "-m", "ssl_trainer", *command],
            stdout=stream,
            stderr=stream,
            env=_one_thread(),
            check=True,
        )


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [int(item.getsockname()[1]) for item in sockets]


def _one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``base`` with the keys of ``over``, at every depth."""
    out = dict(base)
    for key, value in over.items():
        known = out.get(key)
        both = isinstance(value, dict) and isinstance(known, dict)
        out[key] = _merged(known, value) if both else value  # type: ignore[arg-type]
    return out


if __name__ == "__main__":
    main()
