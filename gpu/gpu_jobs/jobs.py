"""The jobs, in the order in which they are meant to run."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

# A job ends itself after its seconds, and is ended so many later.
GRACE_SECONDS = 25
RESULT, PICTURE = "result.json", "picture.png"
LOG, FIRST, LAST = "log.jsonl", "first_batch.png", "last_batch.png"
WEIGHTS = ("model.safetensors", "tokenizer.json", "vlm_config.json")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job.

    Attributes:
        name: as in ``gpu/run NAME``.
        what: one line.
        seconds: from the start of its command to its end.
        brings: files that must come back; the log of the console does, too.
        trains: whether it brings weights that the next one begins with.
        slices: whether it needs a recipe of a training, and its data sets.
        task: of the comparison of semi-supervised methods that it trains for; it needs its data.
        code: what it runs beside that of all jobs.
        record: file of its results, where a newer one takes the place of an older; by default
            each has a number.
        settings: over the recipe's.
    """

    name: str
    what: str
    seconds: int
    brings: tuple[str, ...] = (*WEIGHTS, LOG, FIRST, RESULT)
    trains: bool = True
    slices: bool = True
    task: str = ""
    code: tuple[str, ...] = ()
    record: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


# A line of the log is also when losses are looked at; updates of large batches take seconds.
_LEG = {"checkpoint_minutes": 1.0, "log_every": 5}


def _stage2(name: str, what: str, task: str, settings: dict[str, Any]) -> Job:
    """Runs of a task of the comparison; it brings no weights but states and results."""
    return Job(
        name=name,
        what=what,
        seconds=540,
        brings=(RESULT,),
        trains=False,
        slices=False,
        task=task,
        code=("benchmarks", "services/ssl_trainer/src", f"benchmarks/tasks/{task}.yaml"),
        settings=settings,
    )


JOBS = {
    job.name: job
    for job in (
        Job(
            name="stage1-smoke",
            what="is everything right on this machine, and which batches are fastest?",
            seconds=180,
            brings=(RESULT, PICTURE),
            trains=False,
        ),
        Job(
            name="serve-smoke",
            what="does serving work on this machine, and how fast is it?",
            seconds=480,
            brings=(RESULT,),
            trains=False,
            slices=False,
            code=("benchmarks", "tests"),
            record="serve_smoke.json",
        ),
        Job(
            name="stage1-leg",
            what="Stage 1 training at a constant learning rate; may be repeated",
            seconds=540,
            settings=_LEG | {"decay_share": 0.0},
        ),
        Job(
            name="stage1-decay",
            what="the same, with a learning rate that falls to nothing, to end well",
            seconds=540,
            settings=_LEG | {"decay_share": 1.0},
        ),
        _stage2(
            name="stage2-cells",
            what="runs of the comparison of semi-supervised methods, many side by side",
            task="acdc",
            settings={
                "subsets": ["1", "3", "7"],
                # Those that decide come first: the clock ends the list somewhere.
                "methods": [
                    "vessa",
                    "unimatch",
                    "unimatch-quarters",
                    "unimatch-regions",
                    "vessa-regions",
                    "vessa-labels",
                    "bcp",
                    "cps",
                    "mean-teacher",
                    "supervised",
                ],
                "seeds": [0, 1, 2],
                "steps": [10000],
                "workers": 8,
                "compile": False,
            },
        ),
        _stage2(
            name="stage2-acdc",
            what="one run of the field's protocol, 256 x 256 and 30,000 updates, in stretches",
            task="acdc_256",
            settings={
                "subsets": ["1"],
                "methods": ["vessa"],
                "seeds": [0],
                "steps": [30000],
                "workers": 1,
                "compile": False,
            },
        ),
    )
}


def rehearsal() -> bool:
    """Whether this is a rehearsal on a machine without a GPU, made small."""
    return bool(os.environ.get("VESSA_REHEARSAL"))
