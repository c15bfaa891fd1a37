"""The first job on a new machine: is everything right there, and which batches are fastest?

Parts come in the order of what they decide; one that fails does not end the others, and parts for
which no time is left are skipped. What is known is written down after each.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from gpu_jobs import checks, speed
from gpu_jobs.clock import end_at
from gpu_jobs.context import SMALL_GROUPS, Context
from gpu_jobs.errors import FAILED_CHECK, JobError
from gpu_jobs.gpu import Sampler
from gpu_jobs.preflight import rehearsal
from gpu_jobs.speed import Limits
from vessa_server.training.pack import Pack
from vessa_server.training.processes import Processes
from vessa_server.training.run import build
from vessa_server.training.trainer import Stage1Trainer

RESULT, PICTURE = "result.json", "picture.png"
# Tasks of a batch; small ones, which only show how much of an update is the host's, at the end.
GROUPS, SMALL = (64, 128, 256), (16, 32)
CHECKED_GROUPS = 16
EAGER, COMPILED = Limits(measured=6.0, warming=8.0), Limits(measured=8.0, warming=90.0)
REHEARSED = Limits(measured=1.0, warming=5.0)

Part = Callable[[], dict[str, Any] | None]


@dataclass
class _Smoke:
    context: Context
    result: dict[str, Any]
    failed: int = 0

    def part(self, name: str, needed: float, work: Part, *, cuda: bool = False) -> None:
        """Do one part that takes up to ``needed`` seconds, and write down how it went."""
        parts, left = self.result["parts"], self.context.clock.left()
        if cuda and self.context.device.type != "cuda":
            parts[name] = {"state": "skipped: needs a GPU"}
        elif left < needed:
            parts[name] = {"state": f"skipped: {left:.0f} s left"}
        else:
            parts[name] = {"state": "ended by the clock"}
            self.write()
            began = time.monotonic()
            try:
                parts[name] = {"state": "ok", **(work() or {})}
            except Exception as error:  # whatever it is, the other parts are worth their time
                self.failed += 1
                if not isinstance(error, JobError):
                    traceback.print_exc()
                parts[name] = {"state": f"failed: {str(error)[:600]}"}
            parts[name]["seconds"] = round(time.monotonic() - began, 1)
        print(f"  {name:<14}{parts[name]['state']}", flush=True)
        self.write()

    def write(self) -> None:
        """Bring the result up to date, at once."""
        self.result["seconds"] = round(self.context.clock.gone(), 1)
        unfinished = self.context.out / f"{RESULT}.part"
        unfinished.write_text(json.dumps(self.result, indent=1) + "\n")
        os.replace(unfinished, self.context.out / RESULT)


def run(context: Context) -> dict[str, Any]:
    """All parts; returns the result.

    Raises:
        JobError: a part failed; the result is written all the same.
    """
    context.check_weights()
    slices = context.slices()
    smoke = _Smoke(context, context.result() | {"parts": {}, "speed": []})
    print(f"{len(slices)} slices; {context.clock.gone():.0f} s after the command", flush=True)
    stop = end_at(context.clock, smoke.write)
    with Sampler() as sampler:
        trainer = _trainer(context, slices, compiled=False)
        _checks(smoke, slices, trainer)
        sizes = (SMALL_GROUPS, 1) if rehearsal() else GROUPS
        _speeds(smoke, trainer, sizes, sampler)
        smoke.part("kernels", 12, lambda: speed.kernels(trainer, sizes[0]))
        _compiled(smoke, slices, sampler)
        _speeds(smoke, trainer, () if rehearsal() else SMALL, sampler)
    smoke.result["finished"] = not smoke.failed
    smoke.write()
    stop.set()
    if smoke.failed:
        print(table(smoke.result), flush=True)
        raise JobError(f"{smoke.failed} parts failed", FAILED_CHECK)
    return smoke.result


def _trainer(context: Context, slices: Pack, *, compiled: bool) -> Stage1Trainer:
    return build(
        context.config(groups=CHECKED_GROUPS, minutes=10.0, compile=compiled),
        slices,
        context.run / ("compiled" if compiled else "eager"),
        init=context.weights,
        processes=Processes(device=context.device),
    )


def _checks(smoke: _Smoke, slices: Pack, trainer: Stage1Trainer) -> None:
    context = smoke.context
    smoke.part("products", 5, lambda: checks.products(context), cuda=True)
    smoke.part("episodes", 8, lambda: checks.episodes(context, slices))
    smoke.part("updates", 8, lambda: checks.updates(context, trainer))
    smoke.part("waits", 8, lambda: checks.waits(context, trainer), cuda=True)
    smoke.part("answers", 12, lambda: checks.answers(context, slices))
    save = checks.save_to(context.out / PICTURE)
    smoke.part("picture", 3, lambda: checks.pictures(context, trainer, save))


def _speeds(
    smoke: _Smoke, trainer: Stage1Trainer, sizes: tuple[int, ...], sampler: Sampler
) -> None:
    limits = REHEARSED if rehearsal() else EAGER
    for groups in sizes:
        work = partial(speed.measure, trainer, groups, limits, sampler)
        smoke.part(f"{groups} groups", limits.measured + 4, partial(_measured, smoke, work))


def _compiled(smoke: _Smoke, slices: Pack, sampler: Sampler) -> None:
    """The fastest of the eager ones compiled, then the next as long as there is time."""
    found = [s for s in smoke.result["speed"] if "images_per_second" in s]
    order = [s["groups"] for s in sorted(found, key=lambda s: -s["images_per_second"])]
    built = list[Stage1Trainer]()

    def work(groups: int) -> dict[str, Any]:
        torch.cuda.empty_cache()
        if not built:
            built.append(_trainer(smoke.context, slices, compiled=True))
        most = min(COMPILED.warming, smoke.context.clock.left() - COMPILED.measured - 5)
        return speed.measure(built[0], groups, Limits(COMPILED.measured, most), sampler)

    for groups in order[:2]:
        name = f"{groups} compiled"
        needed = COMPILED.measured + 20
        smoke.part(name, needed, partial(_measured, smoke, partial(work, groups)), cuda=True)


def _measured(smoke: _Smoke, work: Callable[[], dict[str, Any]]) -> None:
    smoke.result["speed"].append(work())


def table(result: dict[str, Any]) -> str:
    """What a person wants to know, last in the output."""
    lines = [f"{result['device']}, torch {result['versions']['torch']}"]
    lines += [f"{name:<14}{part['state']}" for name, part in result["parts"].items()]
    lines.append("groups compiled images/s ms/update GPU % plan ms peak MiB warm s")
    for row in result["speed"]:
        values = [
            row.get(name)
            for name in (
                "images_per_second", "ms_per_update", "gpu_busy_percent", "plan_ms",
                "peak_memory_mib", "warm_seconds",
            )
        ]  # fmt: skip
        lines.append(f"{row['groups']:>6} {row['compile']!s:>8} " + " ".join(map(str, values)))
    return "\n".join(lines)
