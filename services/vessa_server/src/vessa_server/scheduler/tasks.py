"""What the scheduler runs: requests, and work that several of them wait for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from vessa_server.cases.case import Shared, Steps
from vessa_server.inference.look import AnyLook, Prediction
from vessa_server.scheduler.fair_queue import Priority, Rank


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
class Task(ABC):
    """A generator on its way.

    Attributes:
        steps: the generator.
        looks: that it waits for.
        predictions: of the first ones of these.
        answer: what it is sent next ...
        error: ... or what is raised in it.
        waits_for: shared work.
    """

    steps: Steps
    looks: Sequence[AnyLook] = ()
    predictions: list[Prediction] = field(default_factory=list)
    answer: Any = None
    error: Exception | None = None
    waits_for: SharedWork | None = None

    @property
    @abstractmethod
    def rank(self) -> Rank:
        """Its place in the order."""

    def wait_for(self, looks: Sequence[AnyLook]) -> None:
        """Go on when there is a prediction of each look."""
        self.looks, self.predictions = looks, []
        self.answer = self.predictions

    def missing(self, most: int) -> Sequence[AnyLook]:
        """Looks to run before it goes on, not more than ``most``."""
        done = len(self.predictions)
        return () if self.error is not None else self.looks[done : done + most]

    def go_on(self) -> list[AnyLook] | Shared:
        """Run the generator until it needs something.

        Raises:
            StopIteration: it has ended.
            Exception: what it raises.
        """
        answer, error = self.answer, self.error
        self.looks, self.predictions, self.answer, self.error = (), [], None, None
        wanted: list[AnyLook] | Shared = (
            self.steps.send(answer) if error is None else self.steps.throw(error)
        )
        return wanted


@dataclass(eq=False, kw_only=True)
class Request(Task):
    """What somebody asked for."""

    ticket: Ticket
    number: int
    future: Future[Any]

    @property
    def rank(self) -> Rank:
        """By ticket and age."""
        return Rank(self.ticket.priority, self.number, self.ticket.client)


@dataclass(eq=False, kw_only=True)
class SharedWork(Task):
    """Work that several tasks wait for: it is as urgent as the most urgent of them.

    Attributes:
        first: rank of who asked first; he has caused it also if he is gone.
    """

    key: Hashable
    first: Rank
    waiters: list[Task]

    @staticmethod
    def of(wanted: Shared, first: Task) -> SharedWork:
        """Begin it; errors of its beginning are errors of the work, too."""
        steps = _begun(wanted.work)
        return SharedWork(steps=steps, key=wanted.key, first=first.rank, waiters=[first])

    @property
    def rank(self) -> Rank:
        """That of the most urgent who waits for it."""
        return min((waiter.rank for waiter in self.waiters), default=self.first)


def _begun(work: Callable[[], Steps]) -> Steps:
    return (yield from work())
