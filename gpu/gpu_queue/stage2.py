"""Jobs of Stage 2: what they need of the comparison, and where what they bring goes."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import ssl_results
from gpu_jobs import manifest as manifests
from gpu_jobs import stage2_states as states
from gpu_jobs import volumes
from gpu_jobs.errors import JobError
from gpu_jobs.jobs import Job
from gpu_jobs.stage2_plan import Plan, results_file
from gpu_queue import paths, travel
from gpu_queue.machine import Machine
from ssl_tasks import Facts, Task, agree
from vessa_client.console import console
from vessa_server.model import checkpoint

SPLITS = ("train", "val", "test")


def plan(job: Job, changes: dict[str, Any]) -> dict[str, Any]:
    """Settings of a job.

    Raises:
        JobError: a change is wrong.
    """
    settings = {**job.settings, **changes}
    Plan.of(Task.load(job.task), settings)
    return settings


def put_volumes(job: Job, data: Path, folder: Path) -> None:
    """Pack the task's data set, or take the pack that was made of it before.

    Raises:
        JobError: the data set is not there.
    """
    root = Task.load(job.task, data).root
    files = [file for split in SPLITS for file in sorted((root / split).rglob("*.nii*"))]
    if not files:
        raise JobError(f"--data: no volumes in {root}/{'|'.join(SPLITS)}")
    parts = [str(volumes.QUALITY), Path(volumes.__file__).read_text()]
    for file in files:
        status = file.stat()
        parts.append(f"{file.relative_to(root)}:{status.st_size}:{status.st_mtime_ns}")
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    pack = paths.WORK / "packs" / f"{key}.zip"
    if not pack.is_file():
        console.print(f"Packing {len(files)} volumes: some minutes", highlight=False)
        volumes.write(root, SPLITS, pack)
    shutil.copyfile(pack, folder / manifests.VOLUMES)


def put_states(job: Job, settings: dict[str, Any], folder: Path, machine: Machine) -> None:
    """Carry states of runs that were cut off, those with the most updates first, while all fits.

    The others stay here for another time.
    """
    task = Task.load(job.task)
    wanted = [states.file_name(task.name, run) for run in Plan.of(task, settings).runs(task)]
    found = [file for name in wanted if (file := kept(job) / name).is_file()]
    target = folder / states.FOLDER
    for file in sorted(found, key=lambda file: -states.note_of(file).step):
        target.mkdir(exist_ok=True)
        shutil.copyfile(file, target / file.name)
        fits = travel.load(paths.ROOT, folder).fits(machine.travels)
        if not fits:
            (target / file.name).unlink()
        note = states.note_of(file)
        how = "goes on from" if fits else "does not fit, and begins anew; it was at"
        console.print(f"{note.run}: {how} update {note.step} of {note.steps}", highlight=False)


def kept(job: Job) -> Path:
    """Ignored folder of the states of runs that were cut off."""
    return paths.WORK / states.FOLDER / job.name


def check(job: Job, result: dict[str, Any], folder: Path, *, rehearsed: bool) -> None:
    """Of what came back: runs are those that were asked for, of these weights, and scored.

    Raises:
        JobError: something is not so.
    """
    task = Task.load(job.task)
    weights = checkpoint.digest(paths.SHIPPED)
    for facts in result["runs"]:
        name = "/".join(map(str, ssl_results.key(facts)))
        if facts["vessa"] not in (None, weights):
            raise JobError(f"{name}: of weights {facts['vessa'][:12]}, here {weights[:12]}")
        if facts["scores"].keys() != {"val", "test"}:
            raise JobError(f"{name}: scored on {', '.join(facts['scores'])}, expected val and test")
        run = task.run(facts["subset"], facts["method"], facts["seed"], facts["steps"])
        if not rehearsed and not agree(facts["config"], run.settings):
            raise JobError(f"{name}: of other settings than the comparison has now")
    for state in result["states"].values():
        if "file" in state and (folder / state["file"]).is_file():
            states.note_of(folder / state["file"])


def take(job: Job, result: dict[str, Any], folder: Path) -> Path:
    """Merge runs into the results of the comparison, and keep states; returns those results."""
    task = Task.load(job.task)
    file = paths.RESULTS / results_file(task.name)
    made: list[Facts] = result["runs"]
    ssl_results.write(file, task, made)
    target = kept(job)
    target.mkdir(parents=True, exist_ok=True)
    for facts in made:
        run = task.run(facts["subset"], facts["method"], facts["seed"], facts["steps"])
        (target / states.file_name(task.name, run)).unlink(missing_ok=True)
    for name, state in result["states"].items():
        if "file" in state and (folder / state["file"]).is_file():
            shutil.copyfile(folder / state["file"], target / state["file"])
        else:
            reason = state.get("lost") or f"no file {state['file']}"
            console.print(f"{name}: begins anew, no state came back: {reason}", highlight=False)
    return file
