"""Who is more urgent goes before the next step of a look that runs."""

from __future__ import annotations

from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

from support_scheduler import (
    BACKGROUND,
    BULK,
    INTERACTIVE,
    WAIT,
    Device,
    Running,
    one_by_one,
    set_clock,
    sharing,
    together,
)
from vessa_client import InvalidRequestError
from vessa_server.scheduler.scheduler import Priority


def _between(
    running: Running, look: str, name: str, count: int, **ticket: Any
) -> list[Future[Any]]:
    """Submits a request when a look is between two steps."""
    late: list[Future[Any]] = []
    running.device.between[look] = lambda: late.append(
        running.submit(one_by_one(name, count), **ticket)
    )
    return late


@pytest.mark.parametrize("max_batch", [1, 4])
def test_an_interactive_request_is_answered_between_two_steps_of_a_bulk_look(
    max_batch: int,
) -> None:
    with Running(max_batch=max_batch) as running:
        late = _between(running, "slow1", "quick", 3)
        slow = running.submit(one_by_one("slow", 3), priority=BULK)
        seen: list[list[bool]] = []
        running.device.before["slow2"] = lambda: seen.append([late[0].done(), slow.done()])
        assert slow.result(WAIT) == ["SLOW0", "SLOW1", "SLOW2"]
        assert late[0].result(WAIT) == ["QUICK0", "QUICK1", "QUICK2"]
        assert seen == [[True, False]]
        assert running.device.batches.index(["quick2"]) < running.device.batches.index(["slow2"])
    assert running.empty


@pytest.mark.parametrize("priority", [BULK, BACKGROUND])
def test_equals_wait_for_the_end_of_a_look(priority: Priority) -> None:
    with Running() as running:
        late = _between(running, "slow0", "other", 1, priority=priority, client="other")
        done: list[bool] = []
        running.device.between["slow1"] = lambda: done.append(late[0].done())
        slow = running.submit(together("slow0", "slow1"), priority=BULK, client="slow")
        slow.result(WAIT)
        late[0].result(WAIT)
        assert running.device.batches[0] == ["slow0"]
        assert done == [priority is BULK]


def test_three_priorities_pause_each_other() -> None:
    with Running() as running:
        inner = _between(running, "bulk0", "quick", 1, priority=INTERACTIVE)
        outer = _between(running, "template0", "bulk", 2, priority=BULK)
        first = running.submit(one_by_one("template", 2), priority=BACKGROUND)
        assert first.result(WAIT) == ["TEMPLATE0", "TEMPLATE1"]
        assert outer[0].result(WAIT) == ["BULK0", "BULK1"]
        assert inner[0].result(WAIT) == ["QUICK0"]
        assert running.device.ran == ["template0", "bulk0", "quick0", "bulk1", "template1"]
    assert running.empty


def test_work_that_becomes_urgent_while_it_is_paused_is_not_run_twice() -> None:
    with Running() as running:
        late: list[Future[Any]] = []
        running.device.between["shared0"] = lambda: late.append(
            running.submit(sharing("key", lambda: one_by_one("never", 9)), client="urgent")
        )
        first = running.submit(sharing("key", lambda: one_by_one("shared", 2)), priority=BULK)
        assert first.result(WAIT) == (["SHARED0", "SHARED1"], [])
        assert late[0].result(WAIT) == (["SHARED0", "SHARED1"], [])
        assert running.device.ran == ["shared0", "shared1"]
    assert running.empty


def test_work_that_becomes_urgent_has_its_share_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with Running(Device(set_clock(monkeypatch))) as running:
        held, late = running.hold(), []

        def come() -> None:
            late.append(running.submit(sharing("key", lambda: one_by_one("never", 9))))
            late.append(running.submit(one_by_one("other", 50), client="other"))

        running.device.between["shared0"] = come
        work = running.submit(sharing("key", lambda: one_by_one("shared", 2)), priority=BULK)
        running.run([held, work])
        for future in late:
            future.result(WAIT)
        assert running.device.ran.index("shared1") <= 4
    assert running.empty


def test_an_error_in_between_is_not_the_paused_looks() -> None:
    with Running() as running:
        running.device.failing["bad0"] = InvalidRequestError("no")
        late = _between(running, "slow0", "bad", 1)
        slow = running.submit(one_by_one("slow", 2), priority=BULK)
        assert slow.result(WAIT) == ["SLOW0", "SLOW1"]
        with pytest.raises(InvalidRequestError, match="no"):
            late[0].result(WAIT)
    assert running.empty


def test_who_is_cancelled_while_he_is_paused_is_forgotten() -> None:
    with Running() as running:
        held = running.hold()
        slow = running.submit(one_by_one("slow", 2), priority=BULK)
        running.device.between["slow0"] = slow.cancel
        running.device.gate.set()
        assert held.result(WAIT) == ["HELD0"]
        with pytest.raises(CancelledError):
            slow.result(WAIT)
        assert running.submit(one_by_one("next", 1)).result(WAIT) == ["NEXT0"]
        assert running.device.ran == ["held0", "slow0", "next0"]
    assert running.empty


def test_a_client_pays_for_its_own_steps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look takes a second. Without that, client a would owe the twenty of the urgent one."""
    clock = set_clock(monkeypatch)
    with Running(Device(clock)) as running:
        running.hold()
        late = _between(running, "a0", "urgent", 20, client="urgent")
        futures = [running.submit(one_by_one(name, 4), client=name, priority=BULK) for name in "ab"]
        running.run(futures)
        late[0].result(WAIT)
        bulk = [name for name in running.device.ran if name[0] in "ab"]
        assert sorted(bulk[:4]) == ["a0", "a1", "b0", "b1"]
