"""The first job of serving on a new machine: is all right there, and how fast is it?

Random weights of the published sizes stand for ``base`` and ``large``: they are as fast, and their
answers mean nothing.
"""

from __future__ import annotations

from typing import Any

from gpu_jobs import parts, roofline, serve_answers, serve_sizes, serve_speed, serve_tests
from gpu_jobs.context import Context
from gpu_jobs.errors import JobError
from gpu_jobs.jobs import rehearsal
from gpu_jobs.parts import Parts
from gpu_jobs.roofline import Peaks
from gpu_jobs.serve_sizes import Measured

# Presets, what they take to measure in seconds at least, and what stands for them on a CPU.
SIZES = {"base": 20.0, "large": 30.0}
REHEARSED = "nano"


def run(context: Context) -> dict[str, Any]:
    """All parts; returns the result.

    Raises:
        JobError: a part failed; the result is written all the same.
    """
    if context.settings:
        raise JobError(f"{context.job.name}: takes no settings, got {context.settings}")
    return parts.run(context, _parts, table)


def _parts(smoke: Parts) -> None:
    serve_tests.run(smoke)
    serve_answers.run(smoke)
    serve_speed.run(smoke)
    peaks: list[Peaks] = []
    smoke.part("peaks", 10, lambda: roofline.measure(smoke.context.device, peaks))
    for preset, seconds in SIZES.items():
        measured = Measured(preset, REHEARSED if rehearsal() else preset, seconds)
        serve_sizes.run(smoke, measured, peaks[0] if peaks else None)


def table(result: dict[str, Any]) -> str:
    """What a person wants to know, last in the output."""
    lines = parts.states(result)
    for rows in (serve_answers.table, serve_speed.table, serve_sizes.table):
        lines += rows(result["parts"])
    return "\n".join(lines)
