"""The first job on a new machine: is everything right there, and which batches are fastest?

Parts come in the order of what they decide; one that fails does not end the others, and parts for
which no time is left are skipped. What is known is written down after each.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from typing import Any

from torchvision.utils import save_image

from gpu_jobs import checks, speed, steps
from gpu_jobs.context import SMALL_GROUPS, Context
from gpu_jobs.errors import FAILED_CHECK, JobError
from gpu_jobs.gpu import Sampler
from gpu_jobs.jobs import PICTURE, RESULT, rehearsal
from vessa_client import files
from vessa_server.training.trainer import Stage1Trainer

# Tasks of a batch; small ones, which only show how much of an update is the host's, at the end.
GROUPS, SMALL = (64, 128, 256), (16, 32)
CHECKED_GROUPS = 16
# Seconds that a speed is measured, and of warming up before it, at most.
EAGER, COMPILED, REHEARSED = (6.0, 8.0), (8.0, 90.0), (1.0, 5.0)
COMPILED_SIZES, COMPILED_NEEDS = 2, 28.0


class _Smoke:
    def __init__(self, context: Context, sampler: Sampler) -> None:
        self.context = context
        self.sampler = sampler
        self.failed = 0
        self.result = context.result() | {"parts": {}, "speed": []}

    def part(
        self, name: str, needed: float, work: Callable[[], dict[str, Any]], *, cuda: bool = False
    ) -> dict[str, Any]:
        """Do one part that takes up to ``needed`` seconds, and write down how it went."""
        left, began = self.context.clock.left(), time.monotonic()
        found: dict[str, Any] = {}
        if cuda and self.context.device.type != "cuda":
            state = "skipped: needs a GPU"
        elif left < needed:
            state = f"skipped: {left:.0f} s left"
        else:
            self.result["parts"][name] = {"state": "ended by the clock"}
            self.write()
            try:
                found = work()
                state = "ok"
            except Exception as error:  # whatever it is, the other parts are worth their time
                self.failed += 1
                if not isinstance(error, JobError):
                    traceback.print_exc()
                state = f"failed: {str(error)[:600]}"
        print(f"  {name:<14}{state}", flush=True)
        seconds = round(time.monotonic() - began, 1)
        self.result["parts"][name] = {"state": state, "seconds": seconds, **found}
        self.write()
        return found

    def speed(self, trainer: Stage1Trainer, groups: int) -> None:
        """How fast batches of ``groups`` tasks are."""
        compiled = trainer.config.compile
        seconds, warming = COMPILED if compiled else REHEARSED if rehearsal() else EAGER
        warming = min(warming, self.context.clock.left() - seconds - 5)

        def work() -> dict[str, Any]:
            return speed.measure(trainer, groups, self.sampler, seconds=seconds, warming=warming)

        name = f"{groups} compiled" if compiled else f"{groups} groups"
        found = self.part(name, COMPILED_NEEDS if compiled else seconds + 4, work)
        if found:
            self.result["speed"].append(found)

    def write(self) -> None:
        """Bring the result up to date, at once."""
        self.result["seconds"] = round(self.context.clock.gone(), 1)
        text = json.dumps(self.result, indent=1) + "\n"
        files.write_text(self.context.out / RESULT, text)


def run(context: Context) -> dict[str, Any]:
    """All parts; returns the result.

    Raises:
        JobError: a part failed; the result is written all the same.
    """
    stop = context.clock.watch(lambda: None)  # what is known is written already
    with Sampler() as sampler:
        smoke = _Smoke(context, sampler)
        trainer = _trainer(context, compiled=False)
        print(
            f"{len(context.slices)} slices; {context.clock.gone():.0f} s after the command",
            flush=True,
        )
        _checks(smoke, trainer)
        sizes, small = ((SMALL_GROUPS, 1), ()) if rehearsal() else (GROUPS, SMALL)
        for groups in sizes:
            smoke.speed(trainer, groups)
        smoke.part("kernels", 12, lambda: speed.kernels(trainer, sizes[0]))
        _compiled(smoke)
        for groups in small:
            smoke.speed(trainer, groups)
    smoke.result["finished"] = not smoke.failed
    smoke.write()
    stop.set()
    if smoke.failed:
        print(table(smoke.result), flush=True)
        raise JobError(f"{smoke.failed} parts failed", FAILED_CHECK)
    return smoke.result


def _trainer(context: Context, *, compiled: bool) -> Stage1Trainer:
    run = context.run / ("compiled" if compiled else "eager")
    return context.trainer(run, groups=CHECKED_GROUPS, minutes=10.0, compile=compiled)


def _checks(smoke: _Smoke, trainer: Stage1Trainer) -> None:
    context = smoke.context
    smoke.part("episodes", 8, lambda: checks.episodes(trainer, context.slices))
    smoke.part("answers", 12, lambda: checks.answers(trainer))
    smoke.part("updates", 8, lambda: checks.updates(trainer))
    smoke.part("waits", 8, lambda: checks.waits(trainer), cuda=True)

    def picture() -> dict[str, Any]:
        save_image(steps.pictures(trainer), context.out / PICTURE, nrow=1)
        return {}

    smoke.part("picture", 3, picture)


def _compiled(smoke: _Smoke) -> None:
    """The fastest of the eager ones compiled, then the next as long as there is time."""
    rates = {s["groups"]: s.get("images_per_second", 0.0) for s in smoke.result["speed"]}
    best = sorted(rates, key=lambda groups: -rates[groups])[:COMPILED_SIZES]
    if smoke.context.device.type == "cuda" and smoke.context.clock.left() > COMPILED_NEEDS:
        trainer = _trainer(smoke.context, compiled=True)
        for groups in best:
            smoke.speed(trainer, groups)


def table(result: dict[str, Any]) -> str:
    """What a person wants to know, last in the output."""
    lines = [f"{result['device']}, torch {result['versions']['torch']}"]
    lines += [f"{name:<14}{part['state']}" for name, part in result["parts"].items()]
    columns = (
        "groups", "compile", "images_per_second", "ms_per_update", "gpu_busy_percent",
        "gpu_watts", "peak_memory_mib", "warm_seconds",
    )  # fmt: skip
    lines.append("groups compile images/s ms/update GPU % watts peak MiB warm s")
    lines += [" ".join(str(row.get(name)) for name in columns) for row in result["speed"]]
    return "\n".join(lines)
