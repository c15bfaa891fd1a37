"""The queue in front of a runtime; its unit of work is one look at one image.

A request is a generator of looks (:mod:`vessa_server.cases`). One thread runs looks, one or a
batch at a time, and always the most urgent next: interactive requests before bulk ones, then
the client that has had least of the device, then the oldest. So a volume of many looks never
holds up somebody who waits for one picture; who has gone or is out of time costs nothing more.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

import structlog

from vessa_client import DeadlineError, OverloadedError, UnavailableError, VessaError
from vessa_server.cases.case import Shared, Steps
from vessa_server.inference.look import Look, Prediction

log = structlog.get_logger(__name__)


class Priority(IntEnum):
    """Who goes first."""

    INTERACTIVE = 0
    BULK = 1
    BACKGROUND = 2


class Observer(Protocol):
    """What the scheduler tells its metrics."""

    def observe_queue(self, requests: int, nbytes: int) -> None:
        """How much is waiting or running."""
        ...

    def observe_batch(self, looks: int) -> None:
        """How many looks ran together."""
        ...


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """Who asks, and until when.

    Attributes:
        client: by whom the device is shared fairly.
        deadline: in seconds of ``time.monotonic``; None for no end.
        nbytes: of the request's arrays.
    """

    client: str = ""
    priority: Priority = Priority.INTERACTIVE
    deadline: float | None = None
    nbytes: int = 0


@dataclass(eq=False)
class _Task:
    """A generator on its way: a request, or work that several of them share."""

    steps: Steps
    ticket: Ticket
    number: int
    future: Future[Any] | None = None
    shared_key: Hashable = None
    # Tasks that wait for this one, and the one that this one waits for.
    waiters: list[_Task] = field(default_factory=list)
    waits_for: _Task | None = None
    looks: list[Look] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    # What the generator is sent next, or the error that is raised in it.
    answer: Any = None
    error: Exception | None = None

    @property
    def priority(self) -> Priority:
        """That of the most urgent who waits for it."""
        return min((t.priority for t in self.waiters), default=self.ticket.priority)

    @property
    def expired(self) -> bool:
        """Out of time; shared work never is: those who wait for it are."""
        deadline = self.ticket.deadline
        return self.future is not None and deadline is not None and time.monotonic() >= deadline


class Scheduler:
    """Runs looks of many requests in one thread of its own."""

    def __init__(
        self,
        run: Callable[[Sequence[Look]], list[Prediction]],
        *,
        max_batch: int,
        max_wait: float,
        max_requests: int,
        max_bytes: int,
        observer: Observer | None = None,
    ) -> None:
        """Begin to run.

        Args:
            run: segments looks, together.
            max_batch: most looks that run together.
            max_wait: seconds that an idle device waits for more looks, if several may.
            max_requests: waiting or running; more are refused.
            max_bytes: of the arrays of those.
            observer: of queue and batches.
        """
        self._run_looks = run
        self.max_batch = max_batch
        self.max_wait = max_wait if max_batch > 1 else 0.0
        self.max_requests = max_requests
        self.max_bytes = max_bytes
        self._observer = observer
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._open: set[_Task] = set()
        self._bytes = 0
        self._ready: list[_Task] = []
        self._shared: dict[Hashable, _Task] = {}
        self._used: dict[str, float] = {}
        self._closing = False
        self._stopped = False
        # Recent seconds of one request, for the retry delay of refused ones.
        self._pace = 0.05
        self._thread = threading.Thread(target=self._work, name="scheduler", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests are run."""
        return self._thread.is_alive() and not self._stopped

    @property
    def waiting(self) -> int:
        """Requests that wait or run."""
        return len(self._open)

    def submit(self, steps: Steps, ticket: Ticket) -> Future[Any]:
        """Queue a request; cancel the future to drop it.

        Raises:
            OverloadedError: the queue is full; carries when to try again.
            UnavailableError: the server is stopping.
        """
        with self._changed:
            if self._closing or not self.alive:
                raise UnavailableError("the server is stopping", retry_after=1.0)
            self.check_room(ticket.nbytes)
            future: Future[Any] = Future()
            task = _Task(steps, ticket, next(self._numbers), future)
            self._enter_client(ticket.client)
            self._open.add(task)
            self._bytes += ticket.nbytes
            self._make_ready(task)
        future.add_done_callback(lambda done: self._drop(task) if done.cancelled() else None)
        return future

    def drain(self, deadline: float) -> None:
        """Refuse new requests, finish those accepted until ``deadline``, stop."""
        with self._changed:
            self._closing = True
            while self._open and self.alive:
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    break
        self._stop()

    def _stop(self) -> None:
        with self._changed:
            self._stopped = True
            left = list(self._open)
            self._changed.notify_all()
        for task in left:
            self._finish(task, error=UnavailableError("the server has stopped", retry_after=1.0))

    def check_room(self, nbytes: int) -> None:
        """Refuse what would not fit into the queue.

        Raises:
            OverloadedError: the queue is full; carries when to try again.
        """
        count = len(self._open)
        wait = max(0.05, self._pace * count)
        if count >= self.max_requests:
            raise OverloadedError(
                f"queue: full with {count} requests, try again in {wait:.2f} s", retry_after=wait
            )
        if count and self._bytes + nbytes > self.max_bytes:
            raise OverloadedError(
                f"queue: {self._bytes} bytes wait, at most {self.max_bytes} may "
                f"(VESSA_MAX_QUEUE_BYTES); try again in {wait:.2f} s",
                retry_after=wait,
            )

    def _enter_client(self, client: str) -> None:
        """Who comes (again) has no claim on the time when he was away."""
        present = {task.ticket.client for task in self._open}
        least = min((self._used[name] for name in present), default=0.0)
        self._used = {name: self._used[name] for name in present} | {
            client: max(self._used.get(client, 0.0), least)
        }

    def _work(self) -> None:
        try:
            while (step := self._next()) is not None:
                if isinstance(step, _Task):
                    self._advance(step)
                else:
                    self._run_batch(step)
        except BaseException as error:
            log.error("scheduler.died", kind=type(error).__name__)
            raise
        finally:
            self._stop()

    def _next(self) -> _Task | list[tuple[_Task, Look]] | None:
        """A task to go on with, or looks to run; None at the end."""
        with self._changed:
            idle = not self._ready
            while not self._ready and not self._stopped:
                self._changed.wait()
            if idle and self.max_wait and not self._stopped:
                self._changed.wait(self.max_wait)
            if self._stopped or not self._ready:
                return None if self._stopped else []
            ordered = sorted(self._ready, key=self._urgency)
            if not ordered[0].looks or ordered[0].expired:
                return ordered[0]
            if self.max_batch > 1:
                for task in ordered:  # those that go on may have looks for the same batch
                    if not task.looks or task.expired:
                        return task
            batch: list[tuple[_Task, Look]] = []
            for task in ordered:
                missing = task.looks[len(task.predictions) :]
                batch += [(task, look) for look in missing[: self.max_batch - len(batch)]]
                if len(batch) == self.max_batch:
                    break
            return batch

    def _urgency(self, task: _Task) -> tuple[int, float, int]:
        return task.priority, self._used.get(task.ticket.client, 0.0), task.number

    def _advance(self, task: _Task) -> None:
        """Go on with a generator until it needs looks, waits, or ends."""
        with self._changed:
            if task not in self._ready:
                return  # dropped meanwhile
            self._ready.remove(task)
        if task.expired:
            self._finish(task, error=DeadlineError("no answer within the request's deadline"))
            return
        answer, error = task.answer, task.error
        task.looks, task.predictions, task.answer, task.error = [], [], None, None
        try:
            wanted = task.steps.send(answer) if error is None else task.steps.throw(error)
        except StopIteration as end:
            self._finish(task, end.value)
        except Exception as raised:
            self._finish(task, error=raised)
        else:
            with self._changed:
                if isinstance(wanted, Shared):
                    self._wait_for(task, wanted)
                else:
                    task.looks = wanted
                    self._make_ready(task)

    def _wait_for(self, task: _Task, wanted: Shared) -> None:
        shared = self._shared.get(wanted.key)
        if shared is None:
            number = next(self._numbers)
            shared = _Task(wanted.work(), task.ticket, number, shared_key=wanted.key)
            self._shared[wanted.key] = shared
            shared.waiters.append(task)
            self._make_ready(shared)
        else:
            shared.waiters.append(task)
        task.waits_for = shared
        if task not in self._open and task.future is not None:
            self._leave(task)

    def _make_ready(self, task: _Task) -> None:
        if task in self._open or task.waiters:
            self._ready.append(task)
            self._observe()
            self._changed.notify_all()

    def _run_batch(self, batch: list[tuple[_Task, Look]]) -> None:
        if not batch:
            return
        start = time.monotonic()
        outcomes = self._outcomes([look for _, look in batch])
        spent = time.monotonic() - start
        if self._observer is not None:
            self._observer.observe_batch(len(batch))
        with self._changed:
            for (task, _), outcome in zip(batch, outcomes, strict=True):
                client = task.ticket.client
                self._used[client] = self._used.get(client, 0.0) + spent / len(batch)
                if isinstance(outcome, Exception):
                    task.error = outcome
                else:
                    task.predictions.append(outcome)
                if task.error is not None or len(task.predictions) == len(task.looks):
                    task.answer, task.looks = task.predictions, []

    def _outcomes(self, looks: list[Look]) -> list[Prediction | Exception]:
        """What each look gives; an error of one is not an error of another."""
        try:
            return list(self._run_looks(looks))
        except Exception as error:
            if len(looks) == 1:
                return [error]
            return [outcome for look in looks for outcome in self._outcomes([look])]

    def _finish(self, task: _Task, value: Any = None, *, error: Exception | None = None) -> None:
        if error is not None and not isinstance(error, VessaError):
            log.error("request.failed", kind=type(error).__name__)
            error = VessaError("internal error; the server's log names its kind")
        with self._changed:
            if task in self._ready:
                self._ready.remove(task)
            if task.future is None:
                self._shared.pop(task.shared_key, None)
                for waiter in task.waiters:
                    waiter.answer, waiter.error, waiter.waits_for = value, error, None
                    self._make_ready(waiter)
                return
            self._close(task)
        with contextlib.suppress(InvalidStateError):  # cancelled at this moment
            if error is None:
                task.future.set_result(value)
            else:
                task.future.set_exception(error)

    def _drop(self, task: _Task) -> None:
        """Somebody has gone: his request, and what only he waited for, is forgotten."""
        with self._changed:
            self._close(task)
            self._leave(task)

    def _leave(self, task: _Task) -> None:
        if task in self._ready:
            self._ready.remove(task)
        shared = task.waits_for
        if shared is not None and task in shared.waiters:
            shared.waiters.remove(task)
            if not shared.waiters:
                self._shared.pop(shared.shared_key, None)
                self._leave(shared)

    def _close(self, task: _Task) -> None:
        if task in self._open:
            self._open.remove(task)
            self._bytes -= task.ticket.nbytes
            self._observe()
            self._changed.notify_all()

    def _observe(self) -> None:
        if self._observer is not None:
            self._observer.observe_queue(len(self._open), self._bytes)
