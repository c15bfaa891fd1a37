"""What ``log.jsonl`` of a training says, in a few numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from gpu_jobs.errors import NOT_FINITE, JobError

Lines = list[dict[str, float]]
# Lines at the beginning and the end whose mean is shown.
ENDS = 5
SHOWN = ("loss/total", "dice/one_shot", "dice/refined", "dice/prior")


def read(file: Path) -> tuple[Lines, Lines]:
    """Lines of training and of validation; a line that is being written is left out."""
    training: Lines = []
    validation: Lines = []
    for text in file.read_text().splitlines() if file.is_file() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        (training if "loss/total" in line else validation).append(line)
    return training, validation


def check_finite(lines: Lines) -> None:
    """Every number of every line.

    Raises:
        JobError: one is not finite.
    """
    for line in lines:
        for name, value in line.items():
            if not math.isfinite(value):
                raise JobError(f"log: {name} is {value} after update {line['step']}", NOT_FINITE)


def summary(training: Lines, validation: Lines) -> dict[str, Any]:
    """Updates, images, images a second, and losses and scores at both ends."""
    if not training:
        return {"updates": 0}
    # Not from the start: the first updates are those of a cold one.
    first, last = training[0], training[-1]
    seconds = last["seconds"] - first["seconds"]
    found: dict[str, Any] = {
        "updates": int(last["step"]),
        "images": int(last["images"]),
        "training_seconds": round(last["seconds"], 1),
        "images_per_second": round((last["images"] - first["images"]) / seconds, 1)
        if seconds
        else None,
        "first": _means(training[:ENDS]),
        "last": _means(training[-ENDS:]),
    }
    if validation:
        found["validation"] = {n: v for n, v in validation[-1].items() if n.startswith("val/")}
    return found


def _means(lines: Lines) -> dict[str, float]:
    return {
        name: round(sum(line[name] for line in lines) / len(lines), 4)
        for name in SHOWN
        if all(name in line for line in lines)
    }


def thinned(lines: Lines, most: int = 120) -> Lines:
    """At most so many lines, evenly spread, the last one among them."""
    step = -(-len(lines) // most)
    return lines[::-1][::step][::-1] if lines else []
