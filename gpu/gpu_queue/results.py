"""What a job brought: what must be true before it is used, and where results are kept."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch

from gpu_jobs import log
from gpu_jobs.errors import JobError
from gpu_jobs.jobs import LOG, RESULT, Job
from gpu_jobs.manifest import sha256
from gpu_queue import paths, stage2
from gpu_queue.machine import MIB, Machine
from vessa_server.model import checkpoint
from vessa_server.model.presets import preset
from vessa_server.training.trainer import Start


def check(
    job: Job, folder: Path, root: Path = paths.ROOT, *, rehearsed: Machine | None = None
) -> dict[str, Any]:
    """What ``result.json`` in ``folder`` says, once all that is there has been looked at.

    Args:
        job: which.
        folder: what was in ``$OUT``.
        root: folder of the project that the weights to begin with are in.
        rehearsed: the machine for which this was a rehearsal.

    Raises:
        ValueError: something is missing, damaged, not finite, or of another job.
    """
    for name in job.brings:
        if not (folder / name).is_file():
            raise JobError(f"{folder}: no {name}; see console.log there for the reason")
    result: dict[str, Any] = json.loads((folder / RESULT).read_text())
    if reason := _unusable(job, result, rehearsed):
        raise JobError(f"{folder / RESULT}: {reason}")
    if rehearsed is not None:
        _check_size(folder, rehearsed)
    if wrong := _not_finite(result):
        raise JobError(f"{folder / RESULT}: {wrong} is not finite")
    if job.task:
        stage2.check(job, result, folder, rehearsed=rehearsed is not None)
    if not job.trains:
        return result
    for name, expected in result["files"].items():
        file = folder / name
        if not file.is_file() or sha256(file) != expected:
            raise JobError(f"{file}: missing, or not of the digest in {RESULT}")
    training, validation = log.read(folder / LOG)
    if not training:
        raise JobError(f"{folder / LOG}: no line of training")
    log.check_finite(training + validation)
    _check_weights(folder, root, result)
    return result


def _unusable(job: Job, result: dict[str, Any], rehearsed: Machine | None) -> str:
    if result["job"] != job.name:
        return f"of job {result['job']!r}, not {job.name}"
    if "error" in result and not _brought(result):
        return f"the job ended itself: {result['error']}"
    if result["rehearsal"] and rehearsed is None:
        return f"of a rehearsal on {result['device']}"
    return ""


def _brought(result: dict[str, Any]) -> bool:
    """Whether runs came to their ends, or go on from their states, before a job ended itself."""
    states = result.get("states", {}).values()
    return bool(result.get("runs")) or any("file" in state for state in states)


def _not_finite(value: Any, name: str = "result") -> str:
    """The first number that is not finite; nothing where all are."""
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        return next(filter(None, (_not_finite(v, f"{name}/{key}") for key, v in inner)), "")
    return name if isinstance(value, float) and not math.isfinite(value) else ""


def _check_size(folder: Path, machine: Machine) -> None:
    """No more than may come back."""
    files = [f for f in folder.rglob("*") if f.is_file()]
    large = [f.name for f in files if f.stat().st_size > machine.file_back]
    if len(files) > machine.files_back or large:
        raise JobError(
            f"{folder}: {len(files)} files, too large {large}; "
            f"expected at most {machine.files_back} of {machine.file_back // MIB} MiB"
        )


def _check_weights(folder: Path, root: Path, result: dict[str, Any]) -> None:
    """They load, are finite, and come after those of before."""
    weights = root / result["weights"]
    before = checkpoint.digest(weights)
    if result["weights_before"] != before:
        raise JobError(
            f"{folder}: began with weights {result['weights_before'][:12]}, but {weights} has "
            f"{before[:12]}: they have changed since the job was prepared"
        )
    model = checkpoint.load(preset("nano"), folder)
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise JobError(f"{folder}: a weight is not finite")
    seen, images = Start.after(folder).images, Start.after(weights).images
    if seen <= images:
        raise JobError(f"{folder}: has seen {seen} images, not more than before, {images}")


def latest(job: str) -> dict[str, Any] | None:
    """The last result of a job that was collected; None without any."""
    number = next_number(job) - 1
    return json.loads(result_file(job, number).read_text()) if number else None


def next_number(job: str) -> int:
    """Number of a job's next result."""
    pattern = re.compile(rf"gpu_{re.escape(job)}_(\d+)\.json")
    found = [pattern.fullmatch(file.name) for file in paths.RESULTS.glob("gpu_*.json")]
    return 1 + max((int(match[1]) for match in found if match), default=0)


def result_file(job: str, number: int) -> Path:
    """Where a collected result is."""
    return paths.RESULTS / f"gpu_{job}_{number}.json"
