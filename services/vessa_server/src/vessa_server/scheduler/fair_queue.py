"""Who is next: the most urgent, then the client that has had least, then the oldest."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from enum import IntEnum
from operator import itemgetter
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
_number = itemgetter(0)


class Priority(IntEnum):
    """Who goes first."""

    INTERACTIVE = 0
    BULK = 1
    BACKGROUND = 2


class Rank(NamedTuple):
    """A place in the order; of two items of a client the one with the lower number is first."""

    priority: Priority
    number: int
    client: str


class FairQueue(Generic[T]):
    """Items in order of urgency; clients of equal priority get equal shares. Not thread-safe.

    To add, to take out and to find the first costs little however many items a client has.
    """

    def __init__(self) -> None:
        self._levels: dict[Priority, _Level[T]] = {priority: _Level() for priority in Priority}
        self._ranks: dict[T, Rank] = {}

    def __len__(self) -> int:
        return len(self._ranks)

    def __contains__(self, item: T) -> bool:
        return item in self._ranks

    def __iter__(self) -> Iterator[T]:
        """All items, the most urgent first."""
        for level in self._levels.values():
            yield from level.in_order()

    def add(self, item: T, rank: Rank) -> None:
        """Add an item that is not in the queue; no other one has its number."""
        self._ranks[item] = rank
        self._levels[rank.priority].add(item, rank)

    def discard(self, item: T) -> None:
        """Take an item out, if it is there."""
        rank = self._ranks.pop(item, None)
        if rank is not None:
            self._levels[rank.priority].remove(rank)

    def replace(self, item: T, other: T) -> None:
        """Put another item into the place of one."""
        rank = self._ranks[other] = self._ranks.pop(item)
        self._levels[rank.priority].replace(rank, other)

    def move(self, item: T, rank: Rank) -> None:
        """Give an item of the queue another place."""
        before = self._ranks[item]
        if rank != before:
            self.add(item, rank)
            self._levels[before.priority].remove(before)

    def charge(self, rank: Rank, seconds: float) -> None:
        """Note that the client of ``rank`` had the device."""
        self._levels[rank.priority].charge(rank.client, seconds)


class _Level(Generic[T]):
    """Items of one priority, those of each client by age.

    Who comes starts with the least that any of those present has had, so that he has no claim
    on the time when he was away. What somebody owes who leaves and comes back at once stays his.
    """

    def __init__(self) -> None:
        self._lines: dict[str, list[tuple[int, T]]] = {}
        self._used: dict[str, float] = {}

    def in_order(self) -> Iterator[T]:
        def urgency(client: str) -> tuple[float, int]:
            return self._used[client], _number(self._lines[client][0])

        for client in sorted(self._lines, key=urgency):
            for _, item in self._lines[client]:
                yield item

    def add(self, item: T, rank: Rank) -> None:
        if rank.client not in self._lines:
            self._used[rank.client] = self._had(rank.client)
            self._lines[rank.client] = []
        insort(self._lines[rank.client], (rank.number, item), key=_number)

    def replace(self, rank: Rank, item: T) -> None:
        line, index = self._find(rank)
        line[index] = rank.number, item

    def remove(self, rank: Rank) -> None:
        line, index = self._find(rank)
        del line[index]
        if not line:
            del self._lines[rank.client]
        if not self._lines:  # nobody is there to whom anything is owed
            self._used.clear()

    def charge(self, client: str, seconds: float) -> None:
        if self._lines:
            self._used[client] = self._had(client) + seconds

    def _find(self, rank: Rank) -> tuple[list[tuple[int, T]], int]:
        line = self._lines[rank.client]
        return line, bisect_left(line, rank.number, key=_number)

    def _had(self, client: str) -> float:
        least = min((self._used[present] for present in self._lines), default=0.0)
        return max(self._used.get(client, 0.0), least)
