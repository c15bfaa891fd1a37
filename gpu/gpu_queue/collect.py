"""Take in what a job brought: check it, put it where it belongs, write down where."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from gpu_jobs import log
from gpu_queue import checks, paths, table
from gpu_queue import machine as machines
from gpu_queue.checks import Brought
from gpu_queue.errors import QueueError
from gpu_queue.jobs import Job
from gpu_queue.settings import numbered, result_file
from vessa_client import files
from vessa_client.console import console
from vessa_server.model import checkpoint


def collect(job: Job, folder: Path, *, ship: bool = False) -> Path:
    """Check and take in what came back in ``folder``; returns the file of results.

    ``ship`` replaces the weights that the project ships; others go to ``gpu/results``.

    Raises:
        QueueError: something about it is wrong; nothing is changed then.
    """
    if ship and not job.trains:
        raise QueueError(f"--ship: {job.name} brings no weights")
    machine = machines.read(paths.MACHINE)
    brought = checks.check(job, folder, machine, paths.ROOT, rehearsed=False)
    number = max(numbered(paths.RESULTS, job.name), default=0) + 1
    file = result_file(paths.RESULTS, job.name, number)
    kept = paths.LEGS / f"{job.name}_{number}"
    taken = _take(job, folder, paths.SHIPPED if ship else kept)
    files.write_text(file, json.dumps(_record(brought), indent=1) + "\n")
    table.set_state(paths.TABLE, job.name, _state(brought.result, file))
    _say(brought.result, [*taken, file, paths.TABLE], job, number)
    return file


def _take(job: Job, folder: Path, target: Path) -> list[Path]:
    """Copy weights, or the pictures of a job without; returns what is to be committed."""
    names = checkpoint.FILES if job.trains else tuple(f.name for f in folder.glob("*.png"))
    target.mkdir(parents=True, exist_ok=True)
    # The weights last: until then they are the old ones, whole.
    for name in reversed(names):
        shutil.copyfile(folder / name, target / f"{name}.partial")
    for name in reversed(names):
        (target / f"{name}.partial").replace(target / name)
    return [target / name for name in names]


def _record(brought: Brought) -> dict[str, Any]:
    record = {n: v for n, v in brought.result.items() if n not in {"files", "rehearsal"}}
    if brought.training:
        record["log"] = log.thinned(brought.training)
        record["validation_log"] = log.thinned(brought.validation)
    return record


def _state(result: dict[str, Any], file: Path) -> str:
    how = "done" if result["finished"] else "ended early"
    return f"{how}: [{file.stem}](../{paths.inside(file)})"


def _say(result: dict[str, Any], changed: list[Path], job: Job, number: int) -> None:
    named = " ".join(paths.inside(file) for file in changed)
    rate = result.get("images_per_second")
    what = f", {result['images']} images in all, {rate} images/s" if job.trains else ""
    console.print(
        f"{job.name} {number} on {result['device']}{what}\n\n"
        f"    git add {named}\n"
        f'    git commit -m "GPU: {job.name} {number} on {result["device"]}"\n',
        highlight=False,
        soft_wrap=True,
    )
