"""A leg of Stage 1 training, and its end: as many updates as the clock allows.

Each leg begins with the weights of the one before; batches go on where it stopped. Its weights are
the average over the last updates, written once a minute, so that a leg that is cut off has them.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torchvision.utils import save_image

from gpu_jobs import log, steps
from gpu_jobs.errors import OUT_OF_TIME, TOO_SLOW, JobError
from gpu_jobs.gpu import Sampler
from gpu_jobs.jobs import FIRST, LAST, LOG, RESULT, WEIGHTS, rehearsal
from gpu_jobs.manifest import sha256
from gpu_jobs.training import TrainingContext
from vessa_client import files
from vessa_server.training.trainer import Stage1Trainer

COPIED = (*WEIGHTS, LOG, FIRST, LAST)
# Seconds between two copies to the folder that comes back.
SYNC_SECONDS = 5.0
# When a run is looked at: it should be well under way.
CHECK_SECONDS, CHECK_SECONDS_COMPILED = 60.0, 150.0
# What the last update, the last save and the last picture take.
RESERVE_SECONDS = 20.0
SHORTEST_MINUTES = 0.1
# Images a second, of which one of a CPU's cores reaches about 20; percent of the time.
LEAST_RATE, LEAST_BUSY = 300.0, 3.0


def run(context: TrainingContext) -> dict[str, Any]:
    """Train, with all that comes back kept up to date; returns the result.

    Raises:
        JobError: no time is left to train in.
    """
    trainer = context.trainer(context.run, minutes=_minutes(context))
    # Making it has taken some of the time.
    steps.change(trainer, minutes=min(trainer.config.minutes, _minutes(context)))
    config = trainer.config
    print(
        f"{len(context.slices)} slices; batches of {config.groups} x {config.images_per_group} "
        f"images, learning rate {config.learning_rate:g}, decay over {config.decay_share:g} of "
        f"{config.minutes:.1f} min; begins after {trainer.start.images} images, "
        f"{context.clock.gone():.0f} s after the command",
        flush=True,
    )
    result = context.result()
    with Sampler() as sampler, _watched(_Watch(context, trainer, sampler, result)):
        try:
            trainer.run()
        except ArithmeticError as error:
            result["error"] = str(error)
            raise
        result["finished"] = True
        trainer.use_average()
        save_image(steps.pictures(trainer), context.run / LAST, nrow=1)
    return result


def _minutes(context: TrainingContext) -> float:
    left = context.clock.left()
    minutes = (left - RESERVE_SECONDS) / 60
    if minutes < SHORTEST_MINUTES:
        raise JobError(f"{left:.0f} s left, too few to train in", OUT_OF_TIME)
    return round(minutes, 3)


class _Watch:
    """Looks at a run from another thread, and copies what it has written."""

    def __init__(
        self,
        context: TrainingContext,
        trainer: Stage1Trainer,
        sampler: Sampler,
        result: dict[str, Any],
    ) -> None:
        self.context = context
        self.trainer = trainer
        self.sampler = sampler
        self.result = result
        self.began = time.time()
        self.after = CHECK_SECONDS_COMPILED if trainer.config.compile else CHECK_SECONDS
        # When half of that was over, and how many images were seen then.
        self.half: tuple[float, int] | None = None
        self.checked = False
        self.copied: dict[str, tuple[int, int]] = {}
        self.lock = threading.Lock()

    def loop(self, stop: threading.Event) -> None:
        """Until the run is over; a fault of this loop is no reason to end it."""
        while not stop.wait(SYNC_SECONDS):
            try:
                self.sync()
                self.look()
            except Exception as error:
                print(f"Copying: {error!r}", flush=True)

    def sync(self) -> None:
        """Copy what has changed: each file is replaced at once, the result last."""
        with self.lock:
            # The first seconds, in which nothing is trained yet, do not count.
            found = self.sampler.means(self.began + 10)
            self.result |= log.summary(*log.read(self.context.run / LOG)) | found
            self.result["seconds"] = round(self.context.clock.gone(), 1)
            if torch.cuda.is_available():
                self.result["peak_memory_mib"] = torch.cuda.max_memory_allocated() // 2**20
            for name in COPIED:
                self._copy(name)
            files.write_text(self.context.out / RESULT, json.dumps(self.result, indent=1) + "\n")

    def _copy(self, name: str) -> None:
        source, target = self.context.run / name, self.context.out / name
        if not source.is_file():
            return
        status = source.stat()
        version = (status.st_mtime_ns, status.st_size)
        if self.copied.get(name) != version:
            partial = target.with_name(f"{name}.part")
            shutil.copyfile(source, partial)
            self.result.setdefault("files", {})[name] = sha256(partial)
            os.replace(partial, target)
            self.copied[name] = version

    def look(self) -> None:
        """Once, after the first minute: end a run that is not worth the time."""
        now, images = time.time(), self.trainer.images
        if self.half is None and now - self.began >= self.after / 2:
            self.half = (now, images)
        if self.checked or self.half is None or now - self.began < self.after:
            return
        self.checked = True
        # The log may have too few lines yet to tell.
        rate = (images - self.half[1]) / max(1e-9, now - self.half[0])
        busy = self.result["gpu_busy_percent"]
        print(f"After {self.after:.0f} s: {rate:.0f} images/s; {_line(self.result)}", flush=True)
        reason = ""
        if rate < LEAST_RATE:
            reason = f"{rate:.0f} images/s, expected at least {LEAST_RATE:g}"
        elif busy is not None and busy < LEAST_BUSY:
            reason = f"the GPU is busy {busy} % of the time: training runs elsewhere"
        if reason and not rehearsal():
            self.result["error"] = reason
            self.sync()
            print(f"Error: too slow: {reason}", flush=True)
            os._exit(TOO_SLOW)


@contextmanager
def _watched(watch: _Watch) -> Iterator[None]:
    """Keep what comes back up to date, look at the run once, and end it by the clock."""
    stop = watch.context.clock.watch(watch.sync)
    thread = threading.Thread(target=watch.loop, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        watch.sync()


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
    shown = {n: v for n, v in values.items() if n.removeprefix("val/") in log.SHOWN}
    return ", ".join(f"{n} {v:.4f}" for n, v in shown.items()) or "none"
