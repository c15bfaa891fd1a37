"""UniMatch V2 with and without VESSA, cell by cell.

    python benchmarks/ssl_arms.py run acdc --data DATA --out CELLS --arms unimatch mutual
    python benchmarks/ssl_arms.py table acdc --data DATA --out CELLS

A cell is one training of one arm, number of labelled cases, and seed, on one thread; ``--workers``
of them run side by side. A cell that is done, here or in the committed results, is kept, one that
was cut off goes on. Students are chosen on validation patients; with ``--test`` the chosen ones are
scored on test patients too, and tables show those scores with ``--test`` only. ``--equal-time
1.25`` trains for fewer updates: for arms that take 1.25 times as long as UniMatch V2 alone. Tasks
are files of ``benchmarks/tasks``. ``table`` adds the cells to ``benchmarks/results/ssl_TASK.json``;
it shows those of the task's present settings, and with ``--all`` all of them, in Markdown.

Scores are of all that a student finds in one view of each slice, and, in newer cells, also of what
``ssl-trainer predict`` writes: of several views, without small pieces (``--as-predicted``).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import yaml

from acdc import circumstances
from ssl_cells import ARMS, CELL, TASK_NAMES, Cell, Facts, Task, settings
from ssl_tables import AS_PREDICTED, Row, columns, markdown, mean_sd, unlabelled
from ssl_trainer.evaluation.report import answered, read_log
from vessa_client import VessaClient, files
from vessa_client.console import console

# What of a training's log is kept with its results.
CURVES = ("val/", "quality/", "seconds/", "assistant/weight")
EQUAL_TIME = "-equal-time"


def main() -> None:
    """Train cells, or show them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("task", choices=TASK_NAMES)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the cells")
    parser.add_argument("--arms", nargs="+", default=["unimatch", "mutual"], help="or variants")
    parser.add_argument("--cases", type=int, nargs="+", help="all of the task by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="updates, in place of the task's")
    parser.add_argument(
        "--equal-time", type=float, help="how many times as long as UniMatch V2 the arms take"
    )
    parser.add_argument("--workers", type=int, default=2, help="cells side by side")
    parser.add_argument("--adaptation", type=Path, help="file of `vessa-server adapt`")
    parser.add_argument("--test", action="store_true", help="score chosen students on test too")
    parser.add_argument(
        "--as-predicted", action="store_true", help="tables of what `ssl-trainer predict` writes"
    )
    parser.add_argument("--all", action="store_true", help="tables with cells of other settings")
    arguments = parser.parse_args()
    task = Task.load(arguments.task, arguments.data)
    arguments.out = task.cells(arguments.out)
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
    done = task.done(arguments.out)
    cells = [
        task.cell(arm, cases, seed, arguments.steps)
        for seed in arguments.seeds
        for arm in arguments.arms
    ]
    if arguments.equal_time:
        affordable = [int(cell.config["steps"] / arguments.equal_time) for cell in cells]
        cells = [
            task.cell(cell.arm, cell.cases, cell.seed, steps)
            for cell, steps in zip(cells, affordable, strict=True)
        ]
    todo = [cell for cell in cells if cell.name not in done]
    for cell in cells:
        if (arguments.out / cell.name / CELL).is_file():
            _score(arguments.out / cell.name, task, arguments)
    with contextlib.ExitStack() as stack:
        servers = {
            kind: stack.enter_context(_server(task, kind, cases, arguments))
            for kind in sorted({task.asks(cell.arm) for cell in todo} - {""})
        }
        train = partial(_train, task=task, servers=servers, arguments=arguments)
        with ThreadPoolExecutor(arguments.workers) as pool:
            for cell, dice in pool.map(train, todo):
                console.print(f"{cell.name}: validation Dice {dice:.3f}", highlight=False)


def _train(
    cell: Cell, *, task: Task, servers: dict[str, str], arguments: argparse.Namespace
) -> tuple[Cell, float]:
    folder = arguments.out / cell.name
    file, log = folder / "input.yaml", folder / "cell.log"
    resumed = file.is_file()
    files.write_text(file, yaml.safe_dump(cell.config, sort_keys=False))
    server = servers.get(task.asks(cell.arm))
    # A cell with VESSA is one with all of its answers: it fails as soon as the server is away.
    asked = ("--server", server, "--set", "assistant.required=true") if server else ()
    start = time.perf_counter()
    run_trainer("train", str(file), "--out", str(folder), "--threads", "1", *asked, log=log)
    facts: Facts = {
        "name": cell.name,
        "arm": cell.arm + (EQUAL_TIME if arguments.equal_time else ""),
        "cases": cell.cases,
        "seed": cell.seed,
        "steps": cell.config["steps"],
        "settings": settings(cell.config),
        "seconds": time.perf_counter() - start,
        # Then the seconds are those of the last start only.
        "resumed": resumed,
        "side_by_side": arguments.workers,
        "vessa": VessaClient(server).info().model_digest if server else None,
        "answered": answered(read_log(folder / "log.jsonl")).share if server else None,
        **circumstances(),
        "curves": curves(folder / "log.jsonl", cell.config["validate_every"]),
    }
    files.write_text(folder / CELL, json.dumps(facts, indent=2) + "\n")
    facts = _score(folder, task, arguments)
    return cell, float(np.mean([volume["dice"] for volume in facts.get("val", [])] or np.nan))


def _score(folder: Path, task: Task, arguments: argparse.Namespace) -> Facts:
    """Add the scores that a trained cell lacks: of one view with all pieces, and as it predicts."""
    facts: Facts = json.loads((folder / CELL).read_text())
    for split in ("val", "test") if arguments.test else ("val",):
        for suffix, options in (("", ("--plain",)), (AS_PREDICTED, ())):
            if split + suffix not in facts and (task.root / split).is_dir():
                command = ("evaluate", str(folder), "--split", split, *options)
                run_trainer(*command, log=folder / "cell.log")
                facts[split + suffix] = json.loads((folder / f"scores_{split}.json").read_text())
                files.write_text(folder / CELL, json.dumps(facts, indent=2) + "\n")
    return facts


def curves(log: Path, every: int) -> Facts:
    """Means over windows of ``every`` updates: Dice, quality of pseudo-labels, seconds."""
    windows: dict[int, list[dict[str, float]]] = {}
    for entry in read_log(log):
        windows.setdefault(every * math.ceil(entry["step"] / every), []).append(entry)
    names = {n for entries in windows.values() for e in entries for n in e if n.startswith(CURVES)}
    return {
        "step": list(windows),
        **{n: [_mean(entries, n) for entries in windows.values()] for n in sorted(names)},
    }


def _mean(entries: Sequence[dict[str, float]], name: str) -> float | None:
    """Mean where it was logged; a stage of the server that was not entered took no time."""
    values = [entry.get(name, 0.0 if name.startswith("seconds/") else None) for entry in entries]
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), 4) if known else None


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
                # Those that are there already are known by their content.
                for image, labels, name in task.templates(cases):
                    client.add_template(image, labels, task.classes, name=name)
            yield target
        finally:
            process.terminate()
            process.wait(30)


def show(task: Task, arguments: argparse.Namespace) -> None:
    """Add finished cells to the results, and print them as tables."""
    done = task.done(arguments.out)
    names = [c.name for c in task.classes]
    cells = ",\n".join(json.dumps(facts) for facts in done.values())  # a line for each cell
    text = f'{{"classes": {json.dumps(names)}, "cells": [\n{cells}\n]}}\n'
    files.write_text(task.results, text)
    present = {
        task.cell(arm, cases, seed, arguments.steps).name
        for arm in (*ARMS, *task.variants)
        for cases in task.labelled
        for seed in arguments.seeds
    }
    timed = {name for name, facts in done.items() if facts["arm"].endswith(EQUAL_TIME)}
    shown = [facts for name, facts in done.items() if arguments.all or name in present | timed]
    for split in ("val", "test") if arguments.test else ("val",):
        suffix = AS_PREDICTED if arguments.as_predicted else ""
        print(f"\nDice, {split}\n\n{markdown(list(_rows(shown, split + suffix, names)))}")
    console.print(f"Results {task.results}", highlight=False)


def _rows(cells: Sequence[Facts], split: str, names: Sequence[str]) -> Iterator[Row]:
    """A row for each arm and number of labelled cases."""
    scores = ["mean", "HD95", "ASD", "unlabelled", "min"]
    yield ["cases", "arm", "updates", "seeds", *names, *scores]
    groups: dict[tuple[int, str], list[Facts]] = {}
    for cell in cells:
        if split in cell:
            # At equal time each seed has its own number of updates.
            timed = cell["arm"].endswith(EQUAL_TIME)
            arm = cell["arm"] if timed else cell["name"].split("/")[1]
            groups.setdefault((cell["cases"], arm), []).append(cell)
    for (cases, _), runs in sorted(groups.items()):
        minutes = np.mean([run["seconds"] / 60 for run in runs])
        updates = f"{np.mean([run['steps'] for run in runs]):.0f}"
        row = [str(cases), runs[0]["arm"], updates, str(len(runs)), *columns(runs, split)]
        yield [*row, mean_sd(unlabelled(runs), 3), f"{minutes:.0f}"]


def run_trainer(*command: str, log: Path) -> None:
    """Run ``ssl-trainer`` on one thread; what it prints is added to ``log``."""
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


if __name__ == "__main__":
    main()
