"""The first job on a new machine: is everything right there, and which batches are fastest?"""

from __future__ import annotations

from typing import Any

from torchvision.utils import save_image

from gpu_jobs import checks, parts, speed, steps
from gpu_jobs.jobs import PICTURE, rehearsal
from gpu_jobs.parts import Parts
from gpu_jobs.training import SMALL_GROUPS, TrainingContext
from vessa_server.training.trainer import Stage1Trainer

# Tasks of a batch; small ones, which only show how much of an update is the host's, at the end.
GROUPS, SMALL = (64, 128, 256), (16, 32)
CHECKED_GROUPS = 16
# Seconds that a speed is measured, and of warming up before it, at most.
EAGER, COMPILED, REHEARSED = (6.0, 8.0), (8.0, 90.0), (1.0, 5.0)
COMPILED_SIZES, COMPILED_NEEDS = 2, 28.0


def run(context: TrainingContext) -> dict[str, Any]:
    """All parts; returns the result.

    Raises:
        JobError: a part failed; the result is written all the same.
    """
    return parts.run(context, lambda smoke: _parts(context, smoke), table)


def _parts(context: TrainingContext, smoke: Parts) -> None:
    smoke.result["speed"] = []
    trainer = _trainer(context, compiled=False)
    print(
        f"{len(context.slices)} slices; {context.clock.gone():.0f} s after the command", flush=True
    )
    _checks(context, smoke, trainer)
    sizes, small = ((SMALL_GROUPS, 1), ()) if rehearsal() else (GROUPS, SMALL)
    for groups in sizes:
        _speed(smoke, trainer, groups)
    smoke.part("kernels", 12, lambda: speed.kernels(trainer, sizes[0]))
    _compiled(context, smoke)
    for groups in small:
        _speed(smoke, trainer, groups)


def _speed(smoke: Parts, trainer: Stage1Trainer, groups: int) -> None:
    """How fast batches of ``groups`` tasks are."""
    compiled = trainer.config.compile
    seconds, warming = COMPILED if compiled else REHEARSED if rehearsal() else EAGER
    warming = min(warming, smoke.context.clock.left() - seconds - 5)

    def work() -> dict[str, Any]:
        return speed.measure(trainer, groups, smoke.sampler, seconds=seconds, warming=warming)

    name = f"{groups} compiled" if compiled else f"{groups} groups"
    found = smoke.part(name, COMPILED_NEEDS if compiled else seconds + 4, work)
    if found:
        smoke.result["speed"].append(found)


def _trainer(context: TrainingContext, *, compiled: bool) -> Stage1Trainer:
    run = context.run / ("compiled" if compiled else "eager")
    return context.trainer(run, groups=CHECKED_GROUPS, minutes=10.0, compile=compiled)


def _checks(context: TrainingContext, smoke: Parts, trainer: Stage1Trainer) -> None:
    smoke.part("episodes", 8, lambda: checks.episodes(trainer, context.slices))
    smoke.part("answers", 12, lambda: checks.answers(trainer))
    smoke.part("updates", 8, lambda: checks.updates(trainer))
    smoke.part("waits", 8, lambda: checks.waits(trainer), cuda=True)

    def picture() -> dict[str, Any]:
        save_image(steps.pictures(trainer), context.out / PICTURE, nrow=1)
        return {}

    smoke.part("picture", 3, picture)


def _compiled(context: TrainingContext, smoke: Parts) -> None:
    """The fastest of the eager ones compiled, then the next as long as there is time."""
    rates = {s["groups"]: s.get("images_per_second", 0.0) for s in smoke.result["speed"]}
    best = sorted(rates, key=lambda groups: -rates[groups])[:COMPILED_SIZES]
    if context.device.type == "cuda" and context.clock.left() > COMPILED_NEEDS:
        trainer = _trainer(context, compiled=True)
        for groups in best:
            _speed(smoke, trainer, groups)


def table(result: dict[str, Any]) -> str:
    """What a person wants to know, last in the output."""
    lines = parts.states(result)
    columns = (
        "groups", "compile", "images_per_second", "ms_per_update", "gpu_busy_percent",
        "gpu_watts", "peak_memory_mib", "warm_seconds",
    )  # fmt: skip
    lines.append("groups compile images/s ms/update GPU % watts peak MiB warm s")
    lines += [" ".join(str(row.get(name)) for name in columns) for row in result["speed"]]
    return "\n".join(lines)
