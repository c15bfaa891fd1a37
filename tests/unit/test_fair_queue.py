"""The order of items, against a plain sort."""

from __future__ import annotations

from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vessa_server.scheduler.fair_queue import FairQueue, Priority, Rank

CLIENTS = st.sampled_from("abc")
PRIORITIES = st.sampled_from(list(Priority))


@dataclass
class Level:
    """What each client of a priority has had, and who is there."""

    used: dict[str, float] = field(default_factory=dict)
    items: dict[str, Rank] = field(default_factory=dict)

    def start(self, client: str) -> float:
        present = {rank.client for rank in self.items.values()}
        least = min((self.used[name] for name in present), default=0.0)
        return max(self.used.get(client, 0.0), least)

    def add(self, item: str, rank: Rank) -> None:
        if rank.client not in {other.client for other in self.items.values()}:
            self.used[rank.client] = self.start(rank.client)
        self.items[item] = rank

    def remove(self, item: str) -> None:
        del self.items[item]
        if not self.items:
            self.used.clear()

    def in_order(self) -> list[str]:
        oldest = {
            client: min(rank.number for rank in self.items.values() if rank.client == client)
            for client in {rank.client for rank in self.items.values()}
        }

        def urgency(item: str) -> tuple[float, int, int]:
            rank = self.items[item]
            return self.used[rank.client], oldest[rank.client], rank.number

        return sorted(self.items, key=urgency)


class Comparison(RuleBasedStateMachine):
    """Adds, takes out, replaces, moves and charges at random."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[str] = FairQueue()
        self.levels = {priority: Level() for priority in Priority}
        self.numbers = iter(range(10_000))

    @property
    def where(self) -> dict[str, Rank]:
        return {item: r for level in self.levels.values() for item, r in level.items.items()}

    @rule(priority=PRIORITIES, client=CLIENTS, early=st.booleans())
    def add(self, priority: Priority, client: str, early: bool) -> None:
        number = next(self.numbers)
        rank = Rank(priority, -number if early else number, client)
        self.queue.add(f"item {number}", rank)
        self.levels[priority].add(f"item {number}", rank)

    @precondition(lambda self: self.where)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(sorted(self.where)))
        self.levels[self.where[item].priority].remove(item)
        self.queue.discard(item)
        self.queue.discard(item)

    @precondition(lambda self: self.where)
    @rule(data=st.data())
    def replace(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(sorted(self.where)))
        rank, other = self.where[item], f"item {next(self.numbers)}"
        self.queue.replace(item, other)
        items = self.levels[rank.priority].items
        items[other] = items.pop(item)

    @precondition(lambda self: self.where)
    @rule(data=st.data(), priority=PRIORITIES, client=CLIENTS, stays=st.booleans())
    def move(self, data: st.DataObject, priority: Priority, client: str, stays: bool) -> None:
        item = data.draw(st.sampled_from(sorted(self.where)))
        before = self.where[item]
        rank = before if stays else Rank(priority, next(self.numbers), client)
        self.queue.move(item, rank)
        if not stays:
            self.levels[priority].add("moving", rank)
            self.levels[before.priority].remove(item)
            items = self.levels[priority].items
            items[item] = items.pop("moving")

    @rule(priority=PRIORITIES, client=CLIENTS, seconds=st.integers(0, 3))
    def charge(self, priority: Priority, client: str, seconds: int) -> None:
        self.queue.charge(Rank(priority, 0, client), seconds)
        level = self.levels[priority]
        if level.items:
            level.used[client] = level.start(client) + seconds

    @invariant()
    def the_order_is_that_of_a_sort(self) -> None:
        expected = [item for level in self.levels.values() for item in level.in_order()]
        assert list(self.queue) == expected
        assert len(self.queue) == len(expected)
        assert all(item in self.queue for item in expected)


TestFairQueue = Comparison.TestCase
