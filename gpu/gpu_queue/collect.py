"""Take in what a job brought: check it, put it where it belongs, write down where."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from gpu_jobs import log
from gpu_jobs.errors import JobError
from gpu_jobs.jobs import LOG, PICTURE, WEIGHTS, Job
from gpu_queue import paths, results, stage2
from vessa_client import files
from vessa_client.console import console


def collect(job: Job, folder: Path, *, ship: bool = False) -> Path:
    """Check and take in what came back in ``folder``; returns the file of results.

    ``ship`` replaces the weights that the project ships; others go to ``gpu/results``.

    Raises:
        ValueError: something about it is wrong; nothing is changed then.
    """
    if ship and not job.trains:
        raise JobError(f"--ship: {job.name} brings no weights")
    result = results.check(job, folder, paths.ROOT)
    number = results.next_number(job.name)
    file = paths.RESULTS / job.record if job.record else results.result_file(job.name, number)
    target = paths.SHIPPED if ship else paths.LEGS / f"{job.name}_{number}"
    taken = _take(folder, _kept(job), target)
    left_out = {"files", "rehearsal"}
    if job.task:
        taken.append(stage2.take(job, result, folder))
        left_out.add("runs")
    record = {n: v for n, v in result.items() if n not in left_out}
    if job.trains:
        record["log"], record["validation_log"] = map(log.thinned, log.read(folder / LOG))
    files.write_text(file, json.dumps(record, indent=1) + "\n")
    how = "done" if result["finished"] else "ended early"
    set_state(job.name, f"{how}: [{file.stem}](../{paths.inside(file)})")
    named = " ".join(map(paths.inside, [*taken, file, paths.TABLE]))
    title = f"{job.name} on" if job.record else f"{job.name} {number} on"
    what = "{images} images, {images_per_second} a second".format(**result) if job.trains else ""
    if job.task:
        what = f"made {len(result['runs'])} runs"
    console.print(
        f"{title} {result['device']} {what}\n\n"
        f"    git add {named}\n"
        f'    git commit -m "GPU: {title} {result["device"]}"\n',
        highlight=False,
        soft_wrap=True,
    )
    return file


def _kept(job: Job) -> tuple[str, ...]:
    """Files to keep beside the result."""
    return WEIGHTS if job.trains else tuple(name for name in job.brings if name == PICTURE)


def _take(folder: Path, names: tuple[str, ...], target: Path) -> list[Path]:
    """Copy files; returns what is to be committed."""
    if not names:
        return []
    target.mkdir(parents=True, exist_ok=True)
    # The weights last: until then they are the old ones, whole.
    for name in reversed(names):
        shutil.copyfile(folder / name, target / f"{name}.partial")
    for name in reversed(names):
        (target / f"{name}.partial").replace(target / name)
    return [target / name for name in names]


def set_state(job: str, state: str) -> None:
    """Write a job's state into the last column of the table in ``gpu/README.md``.

    Raises:
        JobError: the table has no row for it.
    """
    text = paths.TABLE.read_text()
    row = re.compile(rf"^(\| `{re.escape(job)}` \|.*\| )[^|\n]*( \|)$", re.MULTILINE)
    if not row.search(text):
        raise JobError(f"{paths.TABLE}: no row for job {job}")
    files.write_text(paths.TABLE, row.sub(lambda m: f"{m[1]}{state}{m[2]}", text))
