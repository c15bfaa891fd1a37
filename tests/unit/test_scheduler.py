"""The order in which the scheduler runs looks, shared work, and batches."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from support_scheduler import (
    BACKGROUND,
    BULK,
    INTERACTIVE,
    WAIT,
    Clock,
    Device,
    Running,
    one_by_one,
    set_clock,
    sharing,
    together,
)
from vessa_client import (
    InvalidRequestError,
)
from vessa_server.cases.case import Steps


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return set_clock(monkeypatch)


def test_one_picture_is_the_next_look_when_a_volume_is_under_way() -> None:
    with Running() as running:
        late: list[Future[Any]] = []
        running.device.before["slice14"] = lambda: late.append(
            running.submit(one_by_one("picture", 1), client="b")
        )
        volume = running.submit(one_by_one("slice", 30), client="a", priority=BULK)
        assert len(volume.result(WAIT)) == 30
        assert late[0].result(WAIT) == ["PICTURE0"]
        assert running.device.ran.index("picture0") == 15


def test_looks_that_are_asked_for_together_make_way_too() -> None:
    with Running() as running:
        late: list[Future[Any]] = []
        names = [f"slice{z}" for z in range(30)]
        running.device.before["slice14"] = lambda: late.append(
            running.submit(one_by_one("picture", 1), client="b")
        )
        volume = running.submit(together(*names), client="a", priority=BULK)
        assert volume.result(WAIT) == [name.upper() for name in names]
        assert running.device.ran == [*names[:15], "picture0", *names[15:]]


def test_interactive_comes_before_bulk_and_bulk_before_background() -> None:
    with Running() as running:
        running.hold()
        futures = [
            running.submit(one_by_one(priority.name.lower(), 2), priority=priority)
            for priority in (BACKGROUND, BULK, INTERACTIVE)
        ]
        ran = running.run(futures)
        assert ran == [f"{name}{i}" for name in ("interactive", "bulk", "background") for i in "01"]


def test_requests_of_one_client_are_served_as_they_came() -> None:
    with Running() as running:
        running.hold()
        futures = [running.submit(one_by_one(name, 3), client="a") for name in "abc"]
        assert running.run(futures) == [f"{name}{i}" for name in "abc" for i in range(3)]


@pytest.mark.parametrize("looks", [1, 4])
def test_two_clients_get_equal_numbers_of_looks(clock: Clock, looks: int) -> None:
    with Running(Device(clock)) as running:
        running.hold()
        futures = [running.submit(one_by_one("a", looks), client="a") for _ in range(20)]
        futures += [running.submit(one_by_one("b", looks), client="b") for _ in range(20)]
        ran = running.run(futures)
        assert len(ran) == 40 * looks
        for end in range(len(ran)):
            who = [name[0] for name in ran[:end]]
            assert abs(who.count("a") - who.count("b")) <= 1


def test_a_client_with_slow_looks_gets_fewer_of_them(clock: Clock) -> None:
    device = Device(clock)

    def slow(count: int) -> Steps:
        for index in range(count):
            name = f"a{index}"
            device.before[name] = lambda: setattr(clock, "now", clock.now + 3)
            yield from together(name)

    with Running(device) as running:
        running.hold()
        futures = [running.submit(slow(10), client="a")]
        futures.append(running.submit(one_by_one("b", 40), client="b"))
        ran = running.run(futures)
        assert [name[0] for name in ran[:25]].count("a") == pytest.approx(5, abs=1)


@pytest.mark.parametrize("waits_in_background", [False, True])
def test_a_client_that_comes_late_has_neither_debt_nor_credit(
    clock: Clock, waits_in_background: bool
) -> None:
    with Running(Device(clock)) as running:
        running.hold()
        late: list[Future[Any]] = []
        running.device.before["a50"] = lambda: late.append(
            running.submit(one_by_one("b", 20), client="b")
        )
        if waits_in_background:
            running.submit(one_by_one("c", 1), client="c", priority=BACKGROUND)
        first = running.submit(one_by_one("a", 80), client="a")
        running.run([first])
        ran = [name[0] for name in running.device.ran if name[0] in "ab"]
        shared = ran[52:88]
        assert all(one != other for one, other in pairwise(shared)), shared
        late[0].result(WAIT)


def test_a_client_that_asks_again_at_each_answer_has_no_more_than_its_share(clock: Clock) -> None:
    """It is absent when others are served, and comes back before its own look is forgotten."""
    with Running(Device(clock)) as running:
        running.hold()
        done = threading.Event()

        def again(count: int) -> None:
            if count == 0:
                done.set()
                return
            future = running.submit(one_by_one("a", 1), client="a")
            future.add_done_callback(lambda _: again(count - 1))

        again(20)
        many = [running.submit(one_by_one("b", 1), client="b") for _ in range(60)]
        running.run(many)
        assert done.wait(WAIT)
        ran = [name[0] for name in running.device.ran[1:]]
        for end in range(40):
            assert abs(ran[:end].count("a") - ran[:end].count("b")) <= 1


def test_what_a_client_cancelled_while_it_ran_counts_as_had(clock: Clock) -> None:
    with Running(Device(clock)) as running:
        gone = running.hold()
        futures = [running.submit(one_by_one("held", 1), client="held")]
        futures.append(running.submit(one_by_one("b", 1), client="b"))
        gone.cancel()
        assert running.run(futures) == ["b0", "held0"]


def test_work_that_several_wait_for_is_done_once_and_its_key_is_free_again() -> None:
    with Running() as running:
        running.hold()
        begun: list[int] = []

        def work() -> Steps:
            begun.append(1)
            return (yield from one_by_one("shared", 2))

        futures = [running.submit(sharing("key", work, f"own{i}"), client=str(i)) for i in range(5)]
        ran = running.run(futures)
        assert sorted(ran) == [*(f"own{i}" for i in range(5)), "shared0", "shared1"]
        for index, future in enumerate(futures):
            assert future.result(WAIT) == (["SHARED0", "SHARED1"], [f"OWN{index}"])
        running.submit(sharing("key", work)).result(WAIT)
        assert len(begun) == 2


def test_shared_work_has_the_place_of_who_asked_first() -> None:
    with Running() as running:
        running.hold()
        futures = [
            running.submit(sharing("key", lambda: one_by_one("shared", 2), "own"), client="a"),
            running.submit(one_by_one("later", 1), client="a"),
        ]
        assert running.run(futures) == ["shared0", "shared1", "own", "later0"]


def test_shared_work_is_as_urgent_as_the_most_urgent_who_waits(clock: Clock) -> None:
    with Running(Device(clock)) as running:
        running.hold()

        def steps(own: str) -> Steps:
            return sharing("key", lambda: one_by_one("shared", 4), own)

        urgent: list[Future[Any]] = []

        def joins() -> None:
            urgent.append(running.submit(steps("urgent"), client="b"))

        running.device.before["other1"] = joins

        def goes() -> None:
            urgent[0].cancel()

        running.device.before["shared1"] = goes
        futures = [
            running.submit(one_by_one("other", 6), client="a", priority=BULK),
            running.submit(steps("own"), client="b", priority=BULK),
        ]
        ran = running.run(futures)
        assert ran[:3] == ["other0", "shared0", "other1"], "fair, while nobody is urgent"
        assert ran[3:5] == ["shared1", "other2"], "the urgent one has gone"
        assert ran[-1] == "own"
        assert futures[1].result(WAIT)[1] == ["OWN"]


def test_what_shared_work_waits_for_itself_is_as_urgent() -> None:
    with Running() as running:
        futures: list[Future[Any]] = []

        def steps() -> Steps:
            return sharing("outer", outer)

        def outer() -> Steps:
            return sharing("inner", lambda: one_by_one("inner", 2), "outer")

        def others_come() -> None:
            futures.append(running.submit(one_by_one("before", 1), client="b"))
            futures.append(running.submit(steps(), client="b"))
            futures.append(running.submit(one_by_one("after", 1), client="b"))

        running.device.before["inner0"] = others_come
        bulk = running.submit(steps(), client="a", priority=BULK)
        assert bulk.result(WAIT) == ((["INNER0", "INNER1"], ["OUTER"]), [])
        assert futures[1].result(WAIT) == bulk.result()
        futures[2].result(WAIT)
        assert running.device.ran == ["inner0", "before0", "inner1", "outer", "after0"]


@pytest.mark.parametrize("begins", [False, True])
def test_an_error_of_shared_work_is_an_error_of_all_who_wait(begins: bool) -> None:
    def work() -> Steps:
        if not begins:
            raise InvalidRequestError("volume: wrong", field="volume")
        return one_by_one("wrong", 1)

    with Running() as running:
        running.device.failing["wrong0"] = InvalidRequestError("volume: wrong", field="volume")
        running.hold()
        futures = [running.submit(sharing("key", work)) for _ in range(3)]
        other = running.submit(one_by_one("other", 1))
        running.run([*futures, other])
        for future in futures:
            with pytest.raises(InvalidRequestError, match="volume: wrong"):
                future.result(WAIT)
        assert other.result(WAIT) == ["OTHER0"]
        assert running.submit(sharing("key", lambda: one_by_one("right", 1))).result(WAIT)


def test_looks_of_different_requests_run_together_up_to_the_largest_batch() -> None:
    with Running(max_batch=4) as running:
        running.hold()
        futures = [running.submit(together(f"{n}0", f"{n}1"), client=n) for n in "abcde"]
        running.run(futures)
        assert [len(batch) for batch in running.device.batches] == [1, 4, 4, 2]
        assert running.queue.batches == [1, 4, 4, 2]
        assert len({name[0] for name in running.device.batches[1]}) == 2
        assert [future.result(WAIT) for future in futures] == [[f"{n}0", f"{n}1"] for n in "ABCDE"]


def test_the_most_urgent_look_is_in_the_next_batch_and_company_fills_it() -> None:
    with Running(max_batch=3) as running:
        running.hold()
        futures = [running.submit(one_by_one(f"bulk{i}", 1), priority=BULK) for i in range(4)]
        futures.append(running.submit(one_by_one("urgent", 1)))
        running.run(futures)
        assert running.device.batches[1] == ["urgent0", "bulk00", "bulk10"]


def test_only_an_idle_device_waits_for_company_and_no_longer_than_for_a_full_batch() -> None:
    """It would wait for ever: the test ends as the batch is full, or nothing is idle."""
    with Running(max_batch=3, max_wait=1e6) as running:
        alone = [running.submit(one_by_one(name, 3)) for name in "abc"]
        for future in alone:
            assert len(future.result(WAIT)) == 3
        assert [len(batch) for batch in running.device.batches] == [3, 3, 3]
        running.scheduler.drain(time.monotonic())


def test_an_idle_device_waits_a_little_and_then_runs_what_is_there() -> None:
    with Running(max_batch=3, max_wait=0.05) as running:
        assert running.submit(one_by_one("a", 2)).result(WAIT) == ["A0", "A1"]


def test_an_answer_is_given_before_a_later_look_is_run(clock: Clock) -> None:
    with Running(Device(clock)) as running:
        running.hold()
        first = running.submit(one_by_one("a", 1), client="a")
        second = running.submit(one_by_one("b", 1), client="b")
        third = running.submit(one_by_one("c", 1), client="a")
        done: dict[str, list[bool]] = {}

        def note(name: str) -> None:
            done[name] = [future.done() for future in (first, second, third)]

        for name in ("a0", "b0", "c0"):
            running.device.before[name] = partial(note, name)
        running.run([first, second, third])
        assert done["a0"] == [False, False, False]
        assert done["b0"] == [True, False, False]
        assert done["c0"] == [True, True, False]
