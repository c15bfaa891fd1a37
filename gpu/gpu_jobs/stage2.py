"""Stage 2 on a GPU: trainings of the comparison of semi-supervised methods, side by side.

Runs whose results are in the tree are not made again. One that the clock cuts off comes back as its
state, as long as there is room for that, and goes on in the next stretch; others begin anew there.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import cached_property
from typing import Any

import ssl_results
import ssl_runs
from acdc import RESULTS
from gpu_jobs import manifest as manifests
from gpu_jobs import stage2_states as states
from gpu_jobs import volumes
from gpu_jobs.context import Context
from gpu_jobs.errors import FAILED_CHECK, OUT_OF_TIME, JobError
from gpu_jobs.gpu import Sampler
from gpu_jobs.jobs import RESULT, rehearsal
from gpu_jobs.stage2_plan import Plan, results_file
from gpu_jobs.stage2_servers import SETTINGS, Servers
from gpu_jobs.stage2_states import Note
from gpu_jobs.stage2_train import PROGRESS
from gpu_jobs.stage2_trainings import Trainings, kill_all
from ssl_runs import Comparison
from ssl_tasks import Facts, Run, Task, merged
from vessa_client import files

# A rehearsal: both kinds of runs, in seconds, on a CPU.
SMALL_PLAN: dict[str, Any] = {"seeds": 0, "steps": 4, "workers": 2}
SMALL_METHODS = ("unimatch", "vessa")
SMALL_TRAIN: Facts = {
    "data": {"size": 32},
    "student": {"channels": [4, 4, 8, 8, 8, 4]},
    "assistant": {"ahead": 2},
    "labelled_batch": 2,
    "unlabelled_batch": 2,
    "validate_every": 2,
    "checkpoint_every": 2,
}
# Files of each folder of the data set in a rehearsal, beside the labelled patients'.
SMALL_FILES = 2
# Threads of a training on the CPU, at most.
MOST_THREADS = 4


class Stage2Context(Context):
    """What a job of Stage 2 is given."""

    @cached_property
    def task(self) -> Task:
        """Of the comparison; small in a rehearsal."""
        task = Task.load(self.job.task, self.run / "data")
        return replace(task, train=merged(task.train, SMALL_TRAIN)) if rehearsal() else task

    @cached_property
    def plan(self) -> Plan:
        """What is to be made."""
        plan = Plan.of(self.task, self.settings)
        if not rehearsal():
            return plan
        small = Plan.of(self.task, {**self.settings, **SMALL_PLAN})
        methods = tuple(name for name in SMALL_METHODS if name in plan.methods)
        return replace(small, subsets=plan.subsets[:1], methods=methods or plan.methods[:1])

    @cached_property
    def comparison(self) -> Comparison:
        """Where runs are made, and what is known of them."""
        results = RESULTS / results_file(self.task.name)
        return Comparison(self.task, self.run / "runs", results, self.plan.workers, test=True)

    def unpack(self) -> int:
        """Write the data set again; returns how many files."""
        left = dict.fromkeys(("train", "val", "test"), SMALL_FILES)
        labelled = tuple(name for subset in self.plan.subsets for name in self.task.subsets[subset])

        def wanted(name: str) -> bool:
            split = name.partition("/")[0]
            if not rehearsal() or any(patient in name for patient in labelled):
                return True
            left[split] -= 1
            return left[split] >= 0

        return volumes.read(self.folder / manifests.VOLUMES, self.task.root, wanted)

    def complete(self, facts: Facts) -> Facts:
        """Facts of a run as made here: there is no git on the machine, and not the CPU counts."""
        commit = self.manifest.commit
        return facts | {
            "commit": commit.removesuffix("+"),
            "uncommitted": commit.endswith("+"),
            "processor": self.machine["device"],
            "images": f"WebP {volumes.QUALITY}",
        }

    def options(self) -> list[str]:
        """Of each training's command."""
        threads = max(1, min(MOST_THREADS, _cores() // (2 * self.plan.workers)))
        # Convolutions are measured where nothing else is on the GPU that would be measured, too.
        found = ["--threads", str(threads)]
        found += ["--compile"] if self.plan.compile else []
        return found + (["--tune"] if self.plan.workers == 1 else [])


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def run(context: Stage2Context) -> dict[str, Any]:
    """Train what is to be trained; returns the result.

    Raises:
        JobError: runs failed, or it is not worth going on; the result is written all the same.
    """
    runs = context.plan.runs(context.task)
    missing = _missing(context, runs)
    result = context.result() | {"task": context.task.name, "runs": [], "states": {}}
    if not missing:
        raise JobError("all runs are made; choose others with settings")
    count, resumed = context.unpack(), _resume(context, missing)
    print(
        f"{count} files of {context.task.name}; {len(missing)} of {len(runs)} runs to make, "
        f"{resumed} of them begun; {context.plan.workers} side by side, "
        f"{' '.join(context.options())}, {_cores()} cores; {context.clock.gone():.0f} s "
        "after the command",
        flush=True,
    )
    subsets = [run.subset for run in missing if run.server]
    folder, device = context.run / "servers", context.device.type
    os.environ.update(SETTINGS)
    with Sampler() as sampler:
        stop = context.clock.watch(kill_all)
        with Servers(context.task, subsets, folder, device) as servers:
            trainings = Trainings(
                context.comparison,
                missing,
                servers,
                context.clock.deadline,
                context.options(),
                context.complete,
            )
            try:
                _train(context, trainings, sampler, result)
            finally:
                kill_all()
                result["states"] = _states(context, trainings)
                _write(context, trainings, sampler, result)
        stop.set()
    return _ended(context, trainings, result)


def _missing(context: Stage2Context, runs: list[Run]) -> list[Run]:
    """Runs whose results are not in the tree."""
    comparison = context.comparison
    made = {ssl_results.key(facts): facts for facts in ssl_results.read(comparison.results)}
    return [
        run
        for run in runs
        if run.key not in made or not ssl_runs.same(comparison, run, made[run.key])
    ]


def _train(
    context: Stage2Context, trainings: Trainings, sampler: Sampler, result: dict[str, Any]
) -> None:
    def busy(since: float) -> float | None:
        return sampler.means(since)["gpu_busy_percent"]

    try:
        trainings.run(lambda: _write(context, trainings, sampler, result), busy)
    except JobError as error:
        result["error"] = str(error)
        raise


def _resume(context: Stage2Context, missing: list[Run]) -> int:
    """Put carried states where their runs go on; returns how many."""
    count = 0
    for run in missing:
        file = context.folder / states.FOLDER / states.file_name(context.task.name, run)
        vessa = context.comparison.vessa if run.server else None
        if file.is_file() and states.note_of(file).vessa == vessa:
            states.unpack(file, context.comparison.folder(run))
            count += 1
    return count


def _states(context: Stage2Context, trainings: Trainings) -> dict[str, Any]:
    """Pack the runs that were cut off, those with the most updates first."""
    cut = [*(training.run for training in trainings.running), *trainings.waiting]
    notes = [(run, _note(context, run)) for run in cut if context.comparison.folder(run).is_dir()]
    found: dict[str, Any] = {}
    count, room = 0, states.ROOM
    for run, note in sorted(notes, key=lambda pair: -pair[1].step):
        file = context.out / states.file_name(context.task.name, run)
        if count == states.MOST:
            lost = f"{states.MOST} others come back"
        else:
            lost = states.pack(context.comparison.folder(run), note, file, room)
        found[run.name] = {"step": note.step} | ({"lost": lost} if lost else {"file": file.name})
        if not lost:
            count, room = count + 1, room - file.stat().st_size
    return found


def _note(context: Stage2Context, run: Run) -> Note:
    file = context.comparison.folder(run) / PROGRESS
    step = int(json.loads(file.read_text())["step"]) if file.is_file() else 0
    vessa = context.comparison.vessa if run.server else None
    return Note(context.task.name, run.name, step, run.steps, vessa)


def _write(
    context: Stage2Context, trainings: Trainings, sampler: Sampler, result: dict[str, Any]
) -> None:
    """Bring the result up to date."""
    result |= sampler.means()
    result |= {
        "seconds": round(context.clock.gone(), 1),
        "runs": trainings.done,
        "waiting": [run.name for run in trainings.waiting],
        "failed": trainings.failed,
        "speed": trainings.speed,
        "finished": not (trainings.waiting or trainings.running or trainings.failed),
    }
    files.write_text(context.out / RESULT, json.dumps(result) + "\n")


def _ended(context: Stage2Context, trainings: Trainings, result: dict[str, Any]) -> dict[str, Any]:
    """The result.

    Raises:
        JobError: runs failed, or nothing was made.
    """
    if trainings.failed:
        print(table(result), flush=True)
        raise JobError(f"{len(trainings.failed)} runs failed", trainings.code or FAILED_CHECK)
    if not trainings.done and not result["states"]:
        raise JobError(f"{context.clock.left():.0f} s left, and nothing was made", OUT_OF_TIME)
    return result


def table(result: dict[str, Any]) -> str:
    """What a person wants to know, last in the output."""
    lines = [
        f"{result['device']}, torch {result['versions']['torch']}, GPU busy "
        f"{result['gpu_busy_percent']} %; {len(result['runs'])} runs made, "
        f"{len(result['states'])} cut off, {len(result['failed'])} failed, "
        f"{len(result['waiting'])} still to make"
    ]
    for facts in result["runs"]:
        dice = {split: ssl_results.means([facts], split) for split in ("val", "test")}
        scores = ", ".join(f"{split} Dice {v[0]:.3f}" for split, v in dice.items() if len(v))
        name = f"{facts['subset']}/{facts['method']}/{facts['steps']}/{facts['seed']}"
        lines.append(f"{name:<36} {facts['seconds'] or 'unknown'} s, {scores}")
    for name, state in result["states"].items():
        kept = state.get("file", f"lost: {state.get('lost')}")
        lines.append(f"{name:<36} update {state['step']}, {kept}")
    lines += [f"{name:<36} failed" for name in result["failed"]]
    return "\n".join(lines)
