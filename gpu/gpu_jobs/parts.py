"""A job of parts, in the order of what they decide.

One that fails does not end the others, and parts for which no time is left are skipped. What is
known is written down after each.
"""

from __future__ import annotations

import json
import subprocess
import time
import traceback
from collections.abc import Callable
from typing import Any

from gpu_jobs.context import Context
from gpu_jobs.errors import FAILED_CHECK, JobError
from gpu_jobs.gpu import Sampler
from gpu_jobs.jobs import RESULT
from vessa_client import files

# Of the column of names.
WIDTH = 18


class Parts:
    """Runs parts, and keeps what they found in ``result``."""

    def __init__(self, context: Context, sampler: Sampler) -> None:
        self.context = context
        self.sampler = sampler
        self.failed = 0
        self.result = context.result() | {"parts": {}}
        # Processes of ours, which must not outlive the job.
        self.processes: list[subprocess.Popen[bytes]] = []

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
                if isinstance(error, JobError):
                    found = error.found
                else:
                    traceback.print_exc()
                state = f"failed: {str(error)[:600]}"
        print(f"  {name:<{WIDTH}}{state}", flush=True)
        seconds = round(time.monotonic() - began, 1)
        self.result["parts"][name] = {"state": state, "seconds": seconds, **found}
        self.write()
        return found

    def write(self) -> None:
        """Bring the result up to date, at once."""
        self.result["seconds"] = round(self.context.clock.gone(), 1)
        text = json.dumps(self.result, indent=1) + "\n"
        files.write_text(self.context.out / RESULT, text)

    def end(self) -> None:
        """End what would outlive the job; what is known is written already."""
        for process in self.processes:
            process.kill()


def run(
    context: Context, work: Callable[[Parts], None], table: Callable[[dict[str, Any]], str]
) -> dict[str, Any]:
    """All parts, which ``work`` does; returns the result.

    Raises:
        JobError: a part failed; the result is written all the same, and its table shown.
    """
    with Sampler() as sampler:
        parts = Parts(context, sampler)
        stop = context.clock.watch(parts.end)
        work(parts)
    parts.result["finished"] = not parts.failed
    parts.write()
    stop.set()
    if parts.failed:
        print(table(parts.result), flush=True)
        raise JobError(f"{parts.failed} parts failed", FAILED_CHECK)
    return parts.result


def states(result: dict[str, Any]) -> list[str]:
    """The first lines of a table: the machine, and how each part went."""
    lines = [f"{result['device']}, torch {result['versions']['torch']}"]
    return lines + [f"{name:<{WIDTH}}{part['state']}" for name, part in result["parts"].items()]
