"""The queue in front of a runtime; its unit of work is one look at one image.

A request is a generator of looks (:mod:`vessa_server.cases`). One thread runs looks, one or a
batch at a time, and always the most urgent next (:mod:`vessa_server.scheduler.fair_queue`). So a
volume of many looks never holds up somebody who waits for one picture. Who has a higher priority
does not even wait for the end of a look, but only for that of its step. Who has gone or is out of
time costs nothing more.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from functools import partial
from typing import Any, Protocol

import structlog

from vessa_client import DeadlineError, UnavailableError, VessaError
from vessa_server.cases.case import Shared, Steps
from vessa_server.failures import described
from vessa_server.inference.look import AnyLook, Prediction
from vessa_server.scheduler.bounds import Bounds
from vessa_server.scheduler.fair_queue import FairQueue, Priority, Rank
from vessa_server.scheduler.tasks import Request, SharedWork, Task, Ticket

__all__ = ["Bounds", "Priority", "Scheduler", "Ticket"]

log = structlog.get_logger(__name__)


class Run(Protocol):
    """Segments looks."""

    def __call__(
        self, looks: Sequence[AnyLook], pause: Callable[[], object]
    ) -> Sequence[Prediction]:
        """Segment looks together; calls ``pause`` between their steps."""
        ...


class Scheduler:
    """Runs looks of many requests in one thread of its own."""

    def __init__(
        self,
        run: Run,
        bounds: Bounds,
        *,
        max_batch: int,
        max_wait: float,
        observe_batch: Callable[[int], object] = bool,
        on_start: Callable[[], object] = bool,
    ) -> None:
        """Begin to run.

        Args:
            run: segments looks.
            bounds: of the queue, which other devices may share.
            max_batch: most looks that run together.
            max_wait: seconds that an idle device waits for more looks, if several may.
            observe_batch: told how many looks ran together.
            on_start: called in the thread that will run looks, before it does.
        """
        self._run_looks = run
        self.max_batch = max_batch
        self.max_wait = max_wait if max_batch > 1 else 0.0
        self.bounds = bounds
        self._observe_batch = observe_batch
        self._on_start = on_start
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._open: dict[int, Request] = {}
        self._ready: FairQueue[Task] = FairQueue()
        # Those whose looks run now, or are paused for others.
        self._running: set[Task] = set()
        self._shared: dict[Hashable, SharedWork] = {}
        # No request is out of time before this.
        self._first_deadline = math.inf
        self._closing = False
        self._stopped = False
        # Seconds since the last request was answered.
        self._spent = 0.0
        # Seconds that looks have lent to more urgent ones.
        self._lent = 0.0
        self._thread = threading.Thread(target=self._work, name="scheduler", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests are run."""
        return self._thread.is_alive() and not self._stopped

    def submit(self, steps: Steps, ticket: Ticket) -> Future[Any]:
        """Queue a request; cancel the future to drop it.

        Raises:
            OverloadedError: the queue is full; carries when to try again.
            UnavailableError: the server is stopping.
        """
        future: Future[Any] = Future()
        with self._changed:
            if self._closing or not self.alive:
                raise UnavailableError("the server is stopping", retry_after=1.0)
            self.bounds.enter(ticket)
            request = Request(steps=steps, ticket=ticket, number=next(self._numbers), future=future)
            self._open[request.number] = request
            if ticket.deadline is not None:
                self._first_deadline = min(self._first_deadline, ticket.deadline)
            self._make_ready(request)
        # By number: with the request itself there would be a cycle, and its arrays would live on.
        future.add_done_callback(partial(self._drop_cancelled, request.number))
        return future

    def drain(self, deadline: float) -> None:
        """Refuse new requests, finish those accepted until ``deadline``, stop.

        Nobody waits for work in the background: it is dropped.
        """
        with self._changed:
            self._closing = True
            background = [
                request
                for request in self._open.values()
                if request.ticket.priority is Priority.BACKGROUND
            ]
        self._end(background)
        with self._changed:
            self._changed.wait_for(
                lambda: not self._open or not self.alive, max(0.0, deadline - time.monotonic())
            )
        self._stop()
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _stop(self) -> None:
        with self._changed:
            self._stopped = True
            left = list(self._open.values())
            self._changed.notify_all()
        self._end(left)

    def _end(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self._finish(request, error=UnavailableError("the server has stopped", retry_after=1.0))

    def _work(self) -> None:
        try:
            self._on_start()
            while self._has_work():
                self._end_overdue()
                self._do(self._next())
        except BaseException as error:
            log.error("scheduler.died", **described(error))
            raise
        finally:
            self._stop()

    def _has_work(self) -> bool:
        """Wait for something to do; False at the end."""
        with self._changed:
            if not self._ready:
                self._changed.wait_for(lambda: self._ready or self._stopped)
                if self.max_wait:
                    self._changed.wait_for(
                        lambda: len(self._ready) >= self.max_batch or self._stopped, self.max_wait
                    )
            return not self._stopped

    def _end_overdue(self) -> None:
        """End requests that are out of time, whatever they wait for."""
        now = time.monotonic()
        if now < self._first_deadline:
            return
        with self._changed:
            ends = {
                request: request.ticket.deadline
                for request in self._open.values()
                if request.ticket.deadline is not None
            }
            self._first_deadline = min(
                (end for end in ends.values() if end > now), default=math.inf
            )
        for request, end in ends.items():
            if end <= now:
                late = DeadlineError("no answer within the request's deadline")
                self._finish(request, error=late)

    def _do(self, step: Task | list[tuple[Task, AnyLook]]) -> None:
        if isinstance(step, Task):
            self._advance(step)
        elif step:
            self._run_batch(step)

    def _next(self, before: float = math.inf) -> Task | list[tuple[Task, AnyLook]]:
        """A task to go on with, or looks to run, of a priority ``before`` another; or nothing."""
        batch: list[tuple[Task, AnyLook]] = []
        with self._changed:
            for task in self._ready:
                if task.rank.priority >= before:
                    break
                if task in self._running:
                    continue
                missing = task.missing(self.max_batch - len(batch))
                if not missing:  # what it needs next may come into the same batch
                    return task
                batch += [(task, look) for look in missing]
                if len(batch) == self.max_batch:
                    break
        return batch

    def _advance(self, task: Task) -> None:
        """Go on with a generator until it needs looks, waits, or ends."""
        with self._changed:
            if task not in self._ready:
                return  # dropped meanwhile
            rank = task.rank
        start = time.monotonic()
        try:
            wanted = task.go_on()
        except StopIteration as end:
            self._finish(task, end.value)
        except Exception as raised:
            self._finish(task, error=raised)
        else:
            with self._changed:
                if isinstance(wanted, Shared):
                    self._wait_for(task, wanted)
                else:
                    task.wait_for(wanted)
        finally:
            self._charge(rank, time.monotonic() - start)

    def _wait_for(self, task: Task, wanted: Shared) -> None:
        if task not in self._ready:
            return  # dropped meanwhile
        shared = self._shared.get(wanted.key)
        if shared is None:
            shared = self._shared[wanted.key] = SharedWork.of(wanted, task)
            self._ready.replace(task, shared)
        else:
            self._ready.discard(task)
            shared.waiters.append(task)
            self._reorder(shared)
        task.waits_for = shared

    def _make_ready(self, task: Task) -> None:
        self._ready.add(task, task.rank)
        self._changed.notify_all()

    def _reorder(self, shared: SharedWork) -> None:
        """Others wait for it than before, and so for what it waits for itself."""
        task: Task = shared
        while task.waits_for is not None:
            task = task.waits_for
        if task in self._ready:
            self._ready.move(task, task.rank)

    def _run_batch(self, batch: list[tuple[Task, AnyLook]]) -> None:
        tasks = dict.fromkeys(task for task, _ in batch)
        self._running.update(tasks)
        start, lent = time.monotonic(), self._lent
        outcomes = self._outcomes([look for _, look in batch], partial(self._pause, tasks))
        share = (time.monotonic() - start - (self._lent - lent)) / len(batch)
        self._running.difference_update(tasks)
        self._observe_batch(len(batch))
        with self._changed:
            for (task, _), outcome in zip(batch, outcomes, strict=True):
                self._charge(task.rank, share)
                if isinstance(outcome, Exception):
                    task.error = outcome
                else:
                    task.predictions.append(outcome)
        for task in tasks:
            if not task.missing(1):  # it may have its answer: nobody waits for others' looks
                self._advance(task)

    def _pause(self, running: Iterable[Task]) -> None:
        """Between two steps of looks: whoever is more urgent goes first.

        Their own urgency may grow meanwhile, with that of who waits for them.
        """
        start, lent = time.monotonic(), self._lent
        self._end_overdue()
        while step := self._next(before=min(task.rank.priority for task in running)):
            self._do(step)
        self._lent = lent + time.monotonic() - start

    def _outcomes(
        self, looks: list[AnyLook], pause: Callable[[], object]
    ) -> list[Prediction | Exception]:
        """What each look gives; an error of one is not an error of another."""
        try:
            found = list(self._run_looks(looks, pause))
            if len(found) != len(looks):
                raise RuntimeError(f"{len(found)} predictions of {len(looks)} looks")
        except Exception as error:
            if len(looks) == 1:
                return [error]
            return [outcome for look in looks for outcome in self._outcomes([look], pause)]
        return list(found)

    def _finish(self, task: Task, value: Any = None, *, error: Exception | None = None) -> None:
        if error is not None:
            description = described(error)
            error = error.with_traceback(None)  # its frames would keep the request's arrays
            if not isinstance(error, VessaError):
                log.error("request.failed", **description)
                error = VessaError("internal error; the server's log names its kind")
        with self._changed:
            self._remove(task)
            if isinstance(task, SharedWork):
                for waiter in task.waiters:
                    waiter.answer, waiter.error, waiter.waits_for = value, error, None
                    self._make_ready(waiter)
            elif error is None:
                self.bounds.answered(self._spent)
                self._spent = 0.0
        if isinstance(task, Request):
            with contextlib.suppress(InvalidStateError):  # cancelled at this moment
                if error is None:
                    task.future.set_result(value)
                else:
                    task.future.set_exception(error)

    def _drop_cancelled(self, number: int, future: Future[Any]) -> None:
        """Where somebody has gone his request, and what only he waited for, is forgotten."""
        if not future.cancelled():
            return
        future.set_running_or_notify_cancel()  # for those who wait for several futures
        with self._changed:
            request = self._open.get(number)
            if request is not None:
                self._remove(request)

    def _remove(self, task: Task) -> None:
        """Take it out of the queue, and what only it waited for."""
        self._ready.discard(task)
        if isinstance(task, SharedWork):
            if self._shared.get(task.key) is task:
                del self._shared[task.key]
        elif isinstance(task, Request) and self._open.pop(task.number, None) is not None:
            self.bounds.leave(task.ticket)
            self._changed.notify_all()
        shared, task.waits_for = task.waits_for, None
        if shared is not None:
            shared.waiters.remove(task)
            if shared.waiters:
                self._reorder(shared)
            else:
                self._remove(shared)

    def _charge(self, rank: Rank, seconds: float) -> None:
        with self._changed:
            self._ready.charge(rank, seconds)
            self._spent += seconds
