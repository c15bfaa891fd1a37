"""A device, requests and a clock for tests of the scheduler."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, cast

import pytest

from vessa_server.cases.case import Shared, Steps
from vessa_server.inference.look import AnyLook, Prediction
from vessa_server.scheduler import scheduler as module
from vessa_server.scheduler.scheduler import Bounds, Priority, Scheduler, Ticket

INTERACTIVE, BULK, BACKGROUND = Priority
WAIT = 20


class Clock:
    """Stands for the module ``time``: it goes on when it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Device:
    """Runs looks, which are names; the clock goes on by a second for each.

    Attributes:
        batches: names that ran together, in order.
        before: called in the scheduler's thread when a look of that name begins.
        between: called between two steps of that look; then it pauses.
        failing: what is raised in place of predictions, by the name of a look.
        gate: looks wait until it is set.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock
        self.batches: list[list[str]] = []
        self.before: dict[str, Callable[[], object]] = {}
        self.between: dict[str, Callable[[], object]] = {}
        self.failing: dict[str, BaseException] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    @property
    def ran(self) -> list[str]:
        """Names of all looks that were run."""
        return [name for batch in self.batches for name in batch]

    def __call__(self, looks: Sequence[AnyLook], pause: Callable[[], object]) -> list[Prediction]:
        names = cast("Sequence[str]", looks)
        self.batches.append(list(names))
        self.entered.set()
        for name in names:
            self.before.pop(name, lambda: None)()
        assert self.gate.wait(WAIT)
        for name in names:
            if name in self.between:
                self.between.pop(name)()
                pause()
        if self.clock is not None:
            self.clock.now += len(names)
        for name in names:
            if name in self.failing:
                raise self.failing[name]
        return cast("list[Prediction]", [name.upper() for name in names])


class Queue:
    """Counts of the scheduler's observer."""

    def __init__(self) -> None:
        self.requests = self.nbytes = 0
        self.batches: list[int] = []

    def observe_queue(self, requests: int, nbytes: int) -> None:
        self.requests, self.nbytes = requests, nbytes


class Running:
    """A scheduler in front of a device, stopped at the end."""

    def __init__(self, device: Device | None = None, **settings: Any) -> None:
        self.device = device or Device()
        self.queue = Queue()
        self.bounds = Bounds(
            settings.pop("max_requests", 10_000),
            settings.pop("max_bytes", 1 << 30),
            observer=self.queue,
        )
        values = {"max_batch": 1, "max_wait": 0.0, "observe_batch": self.queue.batches.append}
        self.scheduler = Scheduler(self.device, self.bounds, **{**values, **settings})

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self.device.gate.set()
        self.scheduler.drain(time.monotonic() if kind else time.monotonic() + WAIT)

    def submit(self, steps: Steps, **ticket: Any) -> Future[Any]:
        return self.scheduler.submit(steps, Ticket(**ticket))

    def hold(self) -> Future[Any]:
        """Close the gate behind a look that runs, so that what is submitted now waits."""
        self.device.gate.clear()
        self.device.entered.clear()
        held = self.submit(one_by_one("held", 1), client="held")
        assert self.device.entered.wait(WAIT)
        return held

    @property
    def empty(self) -> bool:
        """Whether nothing is left of any request."""
        scheduler = self.scheduler
        kept = [len(scheduler._open), len(scheduler._shared), len(scheduler._ready)]
        return self.bounds.empty and not any([*kept, self.queue.requests, self.queue.nbytes])

    def run(self, futures: Iterable[Future[Any]]) -> list[str]:
        """Open the gate until all are done; returns the looks that were run since it was closed."""
        before = len(self.device.ran)
        self.device.gate.set()
        for future in futures:
            future.exception(WAIT)
        return self.device.ran[before:]


def together(*names: str) -> Steps:
    """Asks for all looks at once; ends with what they give."""
    return (yield cast("list[AnyLook]", list(names)))


def one_by_one(name: str, count: int) -> Steps:
    """Asks for one look after the other, called ``name0``, ``name1`` ..."""
    found: list[Any] = []
    for index in range(count):
        found += yield cast("list[AnyLook]", [f"{name}{index}"])
    return found


def sharing(key: str, work: Callable[[], Steps], then: str = "") -> Steps:
    """Waits for shared work, then for a look of its own; ends with what both give."""
    found = yield Shared(key, work)
    own = (yield cast("list[AnyLook]", [then])) if then else []
    return found, own


def set_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The scheduler's clock, to be set by hand."""
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock
