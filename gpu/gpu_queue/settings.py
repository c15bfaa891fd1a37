"""Settings of a job: what a smoke job found fastest, and a learning rate that fits the batch."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from gpu_jobs.overrides import changed
from gpu_queue.errors import QueueError
from gpu_queue.jobs import JOBS, Job
from vessa_server.training import config as configuration

# Where no smoke job has said what is fastest.
GROUPS = 64
# Of two sizes of nearly the same throughput the smaller one makes more updates of it.
NEARLY = 0.85
# Compiling must win this much over a whole leg, since it can also go wrong.
WORTH_COMPILING = 1.1


def plan(job: Job, recipe: Path, results: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Settings over the recipe's, for ``job``; ``changes`` win over all others.

    Raises:
        QueueError: the recipe, or a change, is wrong.
    """
    chosen: dict[str, Any] = {"groups": GROUPS}
    if smoke := latest(results, "stage1-smoke"):
        chosen |= fastest(smoke["speed"], job.seconds)
    try:
        rate = configuration.load(recipe).training.learning_rate
        settings = changed(job.settings, {**chosen, **changes}, rate)
        configuration.load(recipe, {**settings, "minutes": 1.0})
    except ValueError as error:
        raise QueueError(str(error)) from error
    return settings


def fastest(speed: list[dict[str, Any]], seconds: int) -> dict[str, Any]:
    """Batch and compiling with the most images in so many seconds."""
    rates = {r["groups"]: r["images_per_second"] for r in speed if _counts(r, compiled=False)}
    if not rates:
        return {}
    best = max(rates.values())
    groups = min(g for g, rate in rates.items() if rate >= NEARLY * best)
    found = {"groups": groups, "compile": False}
    most = WORTH_COMPILING * rates[groups] * seconds
    for row in speed:
        if _counts(row, compiled=True):
            images = row["images_per_second"] * (seconds - row["warm_seconds"])
            if images > most:
                most, found = images, {"groups": row["groups"], "compile": True}
    return found


def _counts(row: dict[str, Any], *, compiled: bool) -> bool:
    there = row.get("compile") is compiled and bool(row.get("images_per_second"))
    return there and bool(row.get("steady"))


def latest(results: Path, job: str) -> dict[str, Any] | None:
    """The last result of a job that was collected; None without any."""
    numbers = numbered(results, job)
    if not numbers:
        return None
    content: dict[str, Any] = json.loads(result_file(results, job, max(numbers)).read_text())
    return content


def numbered(results: Path, job: str) -> list[int]:
    """Numbers of a job's collected results."""
    pattern = re.compile(rf"gpu_{re.escape(job)}_(\d+)\.json")
    return sorted(int(m[1]) for f in results.glob("gpu_*.json") if (m := pattern.fullmatch(f.name)))


def result_file(results: Path, job: str, number: int) -> Path:
    """Where a collected result is."""
    return results / f"gpu_{job}_{number}.json"


def job_called(name: str) -> Job:
    """The job of that name.

    Raises:
        QueueError: there is none.
    """
    if name not in JOBS:
        raise QueueError(f"job {name!r}: expected one of {', '.join(JOBS)}")
    return JOBS[name]
