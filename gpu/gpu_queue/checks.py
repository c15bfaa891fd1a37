"""What must be true of what a job brought before any of it is used."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError

from gpu_jobs import log
from gpu_jobs.errors import JobError
from gpu_jobs.manifest import sha256
from gpu_queue.errors import QueueError
from gpu_queue.jobs import Job
from gpu_queue.machine import MIB, Machine
from vessa_server.model import checkpoint
from vessa_server.model.presets import preset
from vessa_server.training.config import TrainingConfig
from vessa_server.training.episodes import EpisodeGenerator
from vessa_server.training.objective import Objective

RESULT, LOG, IMAGES_NOTE = "result.json", "log.jsonl", "images"
MOST_DEPTH = 3


@dataclass(frozen=True)
class Brought:
    """What a job brought, checked.

    Attributes:
        result: of ``result.json``.
        training, validation: lines of the log; none of a job that does not train.
    """

    result: dict[str, Any]
    training: log.Lines
    validation: log.Lines


def check(job: Job, folder: Path, machine: Machine, root: Path, *, rehearsed: bool) -> Brought:
    """Look at everything in ``folder``, brought from a copy of the project in ``root``.

    Raises:
        QueueError: something is missing, damaged, not finite, or of another job.
    """
    if not folder.is_dir():
        raise QueueError(f"{folder}: no such folder; expected what came back from $OUT")
    if rehearsed:
        _check_size(folder, machine)
    for name in job.brings:
        if not (folder / name).is_file():
            raise QueueError(f"{folder}: no {name}; see console.log there for the reason")
    result = _result(job, folder, rehearsed=rehearsed)
    for file in folder.glob("*.png"):
        _check_picture(file)
    if not job.trains:
        return Brought(result, [], [])
    for name, expected in result["files"].items():
        file = folder / name
        if not file.is_file() or sha256(file) != expected:
            raise QueueError(f"{file}: missing, or not of the digest in {RESULT}")
    training, validation = log.read(folder / LOG)
    if not training:
        raise QueueError(f"{folder / LOG}: no line of training")
    try:
        log.check_finite(training + validation)
    except JobError as error:
        raise QueueError(f"{folder}: {error}") from error
    _check_weights(folder, root, result)
    return Brought(result, training, validation)


def _check_size(folder: Path, machine: Machine) -> None:
    """No more than may come back."""
    files = [f for f in folder.rglob("*") if f.is_file()]
    large = [f.name for f in files if f.stat().st_size > machine.file_back]
    deep = [f.name for f in files if len(f.relative_to(folder).parts) > MOST_DEPTH]
    if len(files) > machine.files_back or large or deep:
        raise QueueError(
            f"{folder}: {len(files)} files, too large {large}, too deep {deep}; "
            f"expected at most {machine.files_back} of {machine.file_back // MIB} MiB"
        )


def _result(job: Job, folder: Path, *, rehearsed: bool) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads((folder / RESULT).read_text())
    except ValueError as error:
        raise QueueError(f"{folder / RESULT}: {error}") from error
    if result.get("job") != job.name:
        raise QueueError(f"{folder / RESULT}: of job {result.get('job')!r}, not {job.name}")
    if reason := result.get("error"):
        raise QueueError(f"{folder / RESULT}: the job ended itself: {reason}")
    if result.get("rehearsal") and not rehearsed:
        raise QueueError(f"{folder / RESULT}: of a rehearsal on {result.get('device')}")
    failed = {n: p["state"] for n, p in result.get("parts", {}).items() if "failed" in p["state"]}
    if failed and rehearsed:
        raise QueueError(f"{folder / RESULT}: {failed}")
    return result


def _check_picture(file: Path) -> None:
    try:
        with Image.open(file) as picture:
            low, high = picture.convert("L").getextrema()
    except (OSError, UnidentifiedImageError) as error:
        raise QueueError(f"{file}: {error}") from error
    if low == high:
        raise QueueError(f"{file}: a picture of one colour")


def _check_weights(folder: Path, root: Path, result: dict[str, Any]) -> None:
    """They load, answer with finite numbers, and come after those of before."""
    weights = (root / result["weights"]).resolve()
    if not weights.is_relative_to(root.resolve()) or not weights.is_dir():
        raise QueueError(f"{folder / RESULT}: began with weights {result['weights']}, not here")
    before = checkpoint.digest(weights)
    if result["weights_before"] != before:
        raise QueueError(
            f"{folder}: began with weights {result['weights_before'][:12]}, but {weights} has "
            f"{before[:12]}: they have changed since the job was prepared"
        )
    try:
        model = checkpoint.load(preset("nano"), folder)
        images = [int(checkpoint.notes(f).get(IMAGES_NOTE, "0")) for f in (weights, folder)]
    except ValueError as error:
        raise QueueError(str(error)) from error
    if images[1] <= images[0]:
        raise QueueError(
            f"{folder}: has seen {images[1]} images, not more than before, {images[0]}"
        )
    config = TrainingConfig(steps=1, groups=1, text_share=1.0)
    generator = EpisodeGenerator(None, config, model.config.image_size)
    objective = Objective(model, config, generator.planner.texts.prompts()).eval()
    with torch.no_grad():
        output = objective(generator[0])
    finite = [torch.isfinite(output.total), torch.isfinite(output.one_shot.logits_P1HW).all()]
    if not all(map(bool, finite)):
        raise QueueError(f"{folder}: the weights answer with numbers that are not finite")
