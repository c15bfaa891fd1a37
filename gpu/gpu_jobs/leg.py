"""A leg of Stage 1 training, and its end: as many updates as the clock allows.

Each leg begins with the weights of the one before; batches go on where it stopped. Its weights are
the average over the last updates, written once a minute, so that a leg that is cut off has them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torchvision.utils import save_image

from gpu_jobs import log
from gpu_jobs.clock import end_at
from gpu_jobs.context import Context, random_parts
from gpu_jobs.errors import OUT_OF_TIME, TOO_SLOW, JobError
from gpu_jobs.gpu import Sampler
from gpu_jobs.outbox import Outbox
from gpu_jobs.preflight import rehearsal
from vessa_server.model import checkpoint
from vessa_server.training.objective import picture
from vessa_server.training.processes import Processes
from vessa_server.training.run import build
from vessa_server.training.trainer import Stage1Trainer

LOG, FIRST, LAST = "log.jsonl", "first_batch.png", "last_batch.png"
COPIED = (*checkpoint.FILES, LOG, FIRST, LAST)
# Seconds between two copies to the folder that comes back.
SYNC_SECONDS = 5.0
# When a run is looked at: it should be well under way.
CHECK_SECONDS, CHECK_SECONDS_COMPILED = 60.0, 150.0
# What the first batch, the last save and the last picture take.
RESERVE_SECONDS, RESERVE_SECONDS_COMPILED = 20.0, 90.0
SHORTEST_MINUTES = 0.1
LEAST_BUSY = 3.0


def run(context: Context) -> dict[str, Any]:
    """Train, with all that comes back kept up to date; returns the result.

    Raises:
        JobError: no time is left to train in.
    """
    context.check_weights()
    slices = context.slices()
    compiled = bool(context.settings.get("compile"))
    reserve = RESERVE_SECONDS_COMPILED if compiled else RESERVE_SECONDS
    minutes = (context.clock.left() - reserve) / 60
    if minutes < SHORTEST_MINUTES:
        raise JobError(f"{context.clock.left():.0f} s left, too few to train in", OUT_OF_TIME)
    config = context.config(minutes=round(minutes, 3))
    trainer = build(
        config,
        slices,
        context.run,
        init=context.weights,
        processes=Processes(device=context.device),
    )
    _announce(context, trainer, len(slices))
    result = context.result()
    outbox = Outbox(context.out, context.run, COPIED, result)
    with Sampler() as sampler, _watched(context, outbox, sampler):
        try:
            trainer.run()
        except ArithmeticError as error:
            result["error"] = str(error)
            raise
        result["finished"] = True
        _last_picture(trainer, context.run / LAST)
    return result


def _announce(context: Context, trainer: Stage1Trainer, slices: int) -> None:
    config = trainer.config
    print(
        f"{slices} slices; batches of {config.groups} x {config.images_per_group} images, "
        f"learning rate {config.learning_rate:g}, decay over {config.decay_share:g} of "
        f"{config.minutes:.1f} min; begins after {trainer.start.images} images, "
        f"{context.clock.gone():.0f} s after the command",
        flush=True,
    )
    if random := random_parts(trainer.model, context.weights):
        print(random, flush=True)


@contextmanager
def _watched(context: Context, outbox: Outbox, sampler: Sampler) -> Iterator[None]:
    """Keep what comes back up to date, look at the run once, and end it by the clock."""
    watch = _Watch(context, outbox, sampler)
    stop = end_at(context.clock, watch.sync)
    thread = threading.Thread(target=watch.loop, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        watch.sync()


class _Watch:
    def __init__(self, context: Context, outbox: Outbox, sampler: Sampler) -> None:
        self.context = context
        self.outbox = outbox
        self.sampler = sampler
        self.began = time.time()
        self.checked = False
        compiled = bool(context.settings.get("compile"))
        self.after = CHECK_SECONDS_COMPILED if compiled else CHECK_SECONDS

    def loop(self, stop: threading.Event) -> None:
        """Until the run is over; a fault of this loop is no reason to end it."""
        while not stop.wait(SYNC_SECONDS):
            try:
                self.sync()
                self.look()
            except (OSError, ValueError) as error:
                print(f"Copying: {error}", flush=True)

    def sync(self) -> None:
        """Bring what comes back up to date."""
        training, validation = log.read(self.context.run / LOG)
        # The first seconds, in which nothing is trained yet, do not count.
        since = self.began + 10
        found = log.summary(training, validation) | {
            "seconds": round(self.context.clock.gone(), 1),
            "gpu_busy_percent": self.sampler.busy(since),
            "gpu_watts": self.sampler.power(since),
        }
        if torch.cuda.is_available():
            found["peak_memory_mib"] = torch.cuda.max_memory_allocated() // 2**20
        self.outbox.result.update(found)
        self.outbox.sync()

    def look(self) -> None:
        """Once, after the first minute: end a run that is not worth the time."""
        if self.checked or time.time() - self.began < self.after:
            return
        self.checked = True
        result = self.outbox.result
        rate, busy = result.get("images_per_second") or 0.0, result["gpu_busy_percent"]
        print(f"After {self.after:.0f} s: {_line(result)}", flush=True)
        if rehearsal():
            return
        least = self.context.manifest.least_rate
        reason = ""
        if rate < least:
            reason = f"{rate:g} images/s, expected at least {least:g}"
        elif busy is not None and busy < LEAST_BUSY:
            reason = f"the GPU is busy {busy} % of the time: training runs elsewhere"
        if reason:
            result["error"] = reason
            self.outbox.sync()
            print(f"Error: too slow: {reason}", flush=True)
            os._exit(TOO_SLOW)


def _last_picture(trainer: Stage1Trainer, file: Path) -> None:
    """What the averaged weights say of held-out subjects, or of a batch that comes next."""
    trainer.use_average()
    trainer.model.eval()
    episode = (trainer.held_out or trainer.generator)[trainer.start.batches + trainer.step]
    with torch.no_grad():
        save_image(picture(episode, trainer.plain_objective(episode)), file, nrow=1)


def table(result: dict[str, Any]) -> str:
    """What a person wants to know, last in the output."""
    rows = [
        ("device", f"{result['device']}, torch {result['versions']['torch']}"),
        ("finished", str(result["finished"])),
        ("run", _line(result)),
        ("at first", _scores(result.get("first", {}))),
        ("at last", _scores(result.get("last", {}))),
        ("held out", _scores(result.get("validation", {}))),
    ]
    return "\n".join(f"{name:<9} {text}" for name, text in rows)


def _line(result: dict[str, Any]) -> str:
    return (
        f"{result.get('updates', 0)} updates, {result.get('images', 0)} images in all, "
        f"{result.get('images_per_second')} images/s, GPU busy "
        f"{result.get('gpu_busy_percent')} %, peak {result.get('peak_memory_mib')} MiB"
    )


def _scores(values: dict[str, float]) -> str:
    names = [n for n in values if n.split("/", 1)[-1] in log.SHOWN or n in log.SHOWN]
    return ", ".join(f"{n} {values[n]:.4f}" for n in names) or "none"
