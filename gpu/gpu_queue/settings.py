"""Settings of a job: what a smoke job found fastest, and a learning rate that fits the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpu_jobs.jobs import Job
from gpu_jobs.settings import changed
from gpu_queue import results
from vessa_server.training import config as configuration

# Where no smoke job has said what is fastest.
GROUPS = 64
# Of two sizes of nearly the same throughput the smaller one makes more updates of it.
NEARLY = 0.85
# Compiling must win this much over a whole leg, since it can also go wrong.
WORTH_COMPILING = 1.1


def plan(job: Job, recipe: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Settings over the recipe's, for ``job``; ``changes`` win over all others.

    Raises:
        ConfigError: the recipe, or a change, is wrong.
    """
    chosen: dict[str, Any] = {"groups": GROUPS}
    if smoke := results.latest("stage1-smoke"):
        chosen |= fastest(smoke["speed"], job.seconds)
    rate = configuration.load(recipe).training.learning_rate
    settings = changed(job.settings, {**chosen, **changes}, rate)
    configuration.load(recipe, {**settings, "minutes": 1.0})
    return settings


def fastest(speed: list[dict[str, Any]], seconds: int) -> dict[str, Any]:
    """Batch and compiling with the most images in so many seconds."""
    usable = [row for row in speed if row.get("steady") and row.get("images_per_second")]
    rates = {r["groups"]: r["images_per_second"] for r in usable if not r["compile"]}
    if not rates:
        return {}
    best = max(rates.values())
    groups = min(g for g, rate in rates.items() if rate >= NEARLY * best)
    found = {"groups": groups, "compile": False}
    most = WORTH_COMPILING * rates[groups] * seconds
    for row in usable:
        images = row["images_per_second"] * (seconds - row.get("warm_seconds", 0.0))
        if row["compile"] and images > most:
            most, found = images, {"groups": row["groups"], "compile": True}
    return found
