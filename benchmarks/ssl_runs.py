"""Semi-supervised methods with and without VESSA, run by run.

    python benchmarks/ssl_runs.py acdc --data DATA --out RUNS --subsets 1 --methods unimatch vessa

A run is one training of a method with the labels of a subset of patients, and a seed, on one
thread. ``--workers`` of them run side by side. A run with VESSA has a server of its own, on another
thread, which begins with nothing but the annotated slices: so all that the run costs is measured.
A run that was cut off goes on; one that is there, in ``--out`` or among the committed results, with
the same settings and weights of VESSA, is not trained again. Its last and its best student are
scored on validation patients, who show curves and choose the best one, and with ``--test`` on test
patients (``ssl_scores.py``). Each run becomes a line of ``benchmarks/results/ssl_TASK.json``, which
``ssl_tables.py`` and ``ssl_pictures.py`` show.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import yaml

import ssl_results
import ssl_scores
from acdc import circumstances, git
from ssl_processes import Process, RunError, locked, processor, served
from ssl_tasks import METHODS, TASK_NAMES, Facts, Run, Task, agree, differences
from ssl_trainer.regions.run import REGIONS_FILE
from vessa_client import VessaClient, VessaError, files
from vessa_client.console import console, print_error
from vessa_common.training_log import answered, read_log
from vessa_server.api.settings import SHIPPED_WEIGHTS
from vessa_server.model import checkpoint

# Of a run's folder: its facts, and what each of its starts cost.
RUN, STARTS, LOG, LOCK = "run.json", "starts.json", "run.log", "lock"
# What of a training's log is kept with its results.
CURVES = ("val/", "quality/", "seconds/")


@dataclass(frozen=True)
class Comparison:
    """Where runs are trained, and how.

    Attributes:
        out: folder of the runs.
        results: file of a line for each.
        workers: runs side by side.
        test: score on test patients, too.
    """

    task: Task
    out: Path
    results: Path
    workers: int = 1
    test: bool = False

    @cached_property
    def vessa(self) -> str:
        """Digest of the weights that servers have."""
        return checkpoint.digest(SHIPPED_WEIGHTS / "nano")

    def folder(self, run: Run) -> Path:
        """Of a run."""
        return self.out / self.task.name / run.name


def main() -> None:
    """Train and score the runs that are not there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=TASK_NAMES)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--subsets", nargs="+", help="all of the task by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="updates, in place of the task's")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side")
    parser.add_argument("--test", action="store_true", help="score on test patients, too")
    arguments = parser.parse_args()
    task = Task.load(arguments.task, arguments.data)
    for name in arguments.subsets or ():
        if name not in task.subsets:
            parser.error(f"--subsets: {name!r}, expected some of {', '.join(task.subsets)}")
    if not task.root.is_dir():
        parser.error(f"--data: no folder {task.root}")
    runs = [
        task.run(subset, method, seed, arguments.steps)
        for seed in arguments.seeds
        for subset in arguments.subsets or task.subsets
        for method in arguments.methods
    ]
    comparison = Comparison(
        task,
        arguments.out.resolve(),
        ssl_results.results_of(task.name),
        arguments.workers,
        arguments.test,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(1 if complete_all(comparison, runs) else 0)


def complete_all(comparison: Comparison, runs: Sequence[Run]) -> int:
    """Train and score what is not there, side by side; returns how many runs failed."""
    failed = 0
    with ThreadPoolExecutor(comparison.workers) as pool:
        outcomes = pool.map(partial(_tried, comparison), runs)
        try:
            for run, outcome in zip(runs, outcomes, strict=True):
                failed += isinstance(outcome, Exception)
                _say(run, outcome)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(Process.started):
                process.end()
            raise
    return failed


def _tried(comparison: Comparison, run: Run) -> Facts | Exception:
    try:
        return complete(comparison, run)
    except (RunError, VessaError, OSError, ValueError) as error:
        return error


def _say(run: Run, outcome: Facts | Exception) -> None:
    """What went wrong, or mean Dice of the last student."""
    if isinstance(outcome, Exception):
        print_error(f"{run.name}: {outcome}")
        return
    found = {split: ssl_results.means([outcome], split) for split in ("val", "test")}
    said = ", ".join(f"{split} Dice {dice[0]:.3f}" for split, dice in found.items() if len(dice))
    console.print(f"{run.name}: {said}", highlight=False)


def complete(comparison: Comparison, run: Run) -> Facts:
    """Train and score a run, as far as that is not done; returns its line of the results.

    Raises:
        RunError: training or scoring did.
    """
    folder = comparison.folder(run)
    facts = _known(comparison, run)
    if facts is None:
        with locked(folder / LOCK) as lock:
            facts = _trained(comparison, run, folder, lock)
            files.write_text(folder / RUN, json.dumps(facts))
    if (folder / RUN).is_file():
        _score(comparison, folder, facts)
    # One for all who write that file, whatever their --out.
    with locked(Path(tempfile.gettempdir()) / f"{comparison.results.name}.lock", wait=True):
        ssl_results.write(comparison.results, comparison.task, [facts])
    return facts


def _known(comparison: Comparison, run: Run) -> Facts | None:
    """What is known of a run that was trained before: here, or among the results."""
    file = comparison.folder(run) / RUN
    here: Facts | None = json.loads(file.read_text()) if file.is_file() else None
    if here is not None and not same(comparison, run, here):
        raise RunError(
            f"{file.parent}: is of other settings, or other weights of VESSA; move it away to "
            "train again"
        )
    committed = {ssl_results.key(facts): facts for facts in ssl_results.read(comparison.results)}
    found = here or committed.get(run.key)
    return found if found is not None and same(comparison, run, found) else None


def same(comparison: Comparison, run: Run, facts: Facts) -> bool:
    """Whether facts are of a run with such settings, and of these weights of VESSA."""
    weights = comparison.vessa if run.server else None
    return agree(facts["config"], run.settings) and facts["vessa"] == weights


def _trained(comparison: Comparison, run: Run, folder: Path, lock: int) -> Facts:
    """Train from where an earlier start was cut off; returns facts without scores."""
    vessa = comparison.vessa if run.server else None
    starts: list[Facts] = []
    if (folder / STARTS).is_file():
        starts = json.loads((folder / STARTS).read_text())
    if any(start["vessa"] != vessa for start in starts):
        raise RunError(f"{folder}: began with other weights of VESSA; move it away to train again")
    # What is not known of a start that was killed stays so.
    start: Facts = {"vessa": vessa, "seconds": None, "training": None, "server": None}
    starts.append(start)
    files.write_text(folder / STARTS, json.dumps(starts))
    try:
        _train(comparison.task, run, folder, start, lock)
    finally:
        files.write_text(folder / STARTS, json.dumps(starts))
    return facts_of(comparison, run, folder, starts)


def _train(task: Task, run: Run, folder: Path, start: Facts, lock: int) -> None:
    """Train to the end, and note what that cost."""
    file = folder / "input.yaml"
    files.write_text(file, yaml.safe_dump(run.config, sort_keys=False))
    command = ["-m", "ssl_trainer", "train", str(file), "--out", str(folder), "--threads", "1"]
    begin = time.perf_counter()
    fill = partial(fill_bank, task, run.subset)
    with served(folder / "server", fill) if run.server else contextlib.nullcontext() as server:
        if server is not None:
            command += ["--server", server.address]
        trainer = Process(folder / LOG, *command, pass_fds=(lock,))
        status = trainer.wait()
        start["seconds"] = time.perf_counter() - begin
        start["training"] = trainer.cpu_seconds
    start["server"] = 0.0 if server is None else server.process.cpu_seconds
    if status:
        trainer.check()


def fill_bank(task: Task, subset: str, client: VessaClient) -> None:
    """Annotated slices as templates; those that are there already are known by their content."""
    for image, labels, name in task.templates(subset):
        client.add_template(image, labels, task.classes, name=name)


def facts_of(comparison: Comparison, run: Run, folder: Path, starts: Sequence[Facts]) -> Facts:
    """What there is to know of a trained run but for its scores."""
    log = read_log(folder / "log.jsonl")
    answers = answered(log)
    return {
        "subset": run.subset,
        "method": run.method,
        "seed": run.seed,
        "steps": run.steps,
        "settings": differences(run.config),
        "config": run.settings,
        "starts": len(starts),
        **{name: _sum(starts, name) for name in ("seconds", "training", "server")},
        "side_by_side": comparison.workers,
        "vessa": starts[-1]["vessa"],
        "answered": answers.share if answers.requested else None,
        "regions": _regions(folder / REGIONS_FILE),
        **circumstances(),
        "processor": processor(),
        "uncommitted": _uncommitted(),
        "curves": curves(log, run.config["validate_every"]),
        "scores": {},
    }


def _sum(starts: Sequence[Facts], name: str) -> float | None:
    """Over all starts; None where one was killed."""
    values = [start[name] for start in starts]
    return None if None in values else round(sum(values), 1)


def _regions(file: Path) -> Facts | None:
    """Of how many series a region is used, and of how many VESSA named one."""
    if not file.is_file():
        return None
    found = json.loads(file.read_text())
    return {name: len(found[name]) for name in ("vessa", "used")}


def curves(log: Sequence[dict[str, float]], every: int) -> Facts:
    """Means over windows of ``every`` updates: Dice, quality of pseudo-labels, seconds."""
    windows: dict[int, list[dict[str, float]]] = {}
    for entry in log:
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


def _score(comparison: Comparison, folder: Path, facts: Facts) -> None:
    """Add the scores that a trained run lacks."""
    splits = [
        split
        for split in (("val", "test") if comparison.test else ("val",))
        if split not in facts["scores"] and (comparison.task.root / split).is_dir()
    ]
    if splits:
        Process(folder / LOG, ssl_scores.__file__, str(folder), *splits).check()
        for split in splits:
            file = ssl_scores.scores_file(folder, split)
            facts["scores"][split] = json.loads(file.read_text())
        files.write_text(folder / RUN, json.dumps(facts))


def _uncommitted() -> bool:
    """Whether what trains, serves and scores is other than in the commit, or that is unknown."""
    code = ("services", "proto", "benchmarks/tasks", ":(glob)benchmarks/*.py")
    status = git("status", "--porcelain", "--", *code)
    return status is None or bool(status.strip())


if __name__ == "__main__":
    main()
