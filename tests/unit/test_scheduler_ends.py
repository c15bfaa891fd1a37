"""How requests end that are not simply answered: deadlines, bounds, errors, and a drain."""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import CancelledError

import pytest
from structlog.testing import capture_logs

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
    DeadlineError,
    InvalidRequestError,
    OverloadedError,
    UnavailableError,
    VessaError,
)
from vessa_server.cases.case import Steps
from vessa_server.scheduler.scheduler import Ticket


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return set_clock(monkeypatch)


def test_a_request_out_of_time_is_answered_without_a_look_wherever_it_waits(clock: Clock) -> None:
    with Running(Device(clock)) as running:
        running.hold()
        long = running.submit(one_by_one("long", 5), client="a")
        late = running.submit(
            one_by_one("late", 1), client="b", priority=BACKGROUND, deadline=clock.now + 3.5
        )
        never = running.submit(one_by_one("never", 1), deadline=clock.now - 1)
        done_before: list[bool] = []
        running.device.before["long2"] = lambda: done_before.append(late.done())
        running.device.before["long3"] = lambda: done_before.append(late.done())
        ran = running.run([long, late, never])
        assert ran == [f"long{i}" for i in range(5)]
        assert done_before == [False, True]
        for future in (late, never):
            with pytest.raises(DeadlineError):
                future.result(WAIT)


def test_a_request_that_runs_out_of_time_between_looks_runs_no_more(clock: Clock) -> None:
    with Running(Device(clock)) as running:
        running.hold()
        late = running.submit(one_by_one("late", 9), deadline=clock.now + 3.5)
        wide = running.submit(together("wide0", "wide1", "wide2"), deadline=clock.now + 5.5)
        assert running.run([late, wide]) == ["late0", "late1", "late2", "wide0", "wide1"]
        for future in (late, wide):
            with pytest.raises(DeadlineError):
                future.result(WAIT)
        assert running.queue.requests == 0


@pytest.mark.parametrize("others", [0, 1])
def test_who_waits_for_shared_work_may_run_out_of_time(clock: Clock, others: int) -> None:
    with Running(Device(clock)) as running:
        running.hold()

        def steps() -> Steps:
            return sharing("key", lambda: one_by_one("shared", 5))

        late = running.submit(steps(), client="a", deadline=clock.now + 3.5)
        patient = [running.submit(steps(), client="b") for _ in range(others)]
        done: list[bool] = []
        running.device.before["shared4"] = lambda: done.append(late.done())
        ran = running.run([late, *patient])
        assert len(ran) == (5 if others else 3)
        assert done == [True] * others
        with pytest.raises(DeadlineError):
            late.result(WAIT)
        assert all(len(future.result(WAIT)[0]) == 5 for future in patient)


def test_a_full_queue_refuses_and_a_cancelled_request_makes_room_at_once() -> None:
    with Running(max_requests=3) as running:
        running.hold()
        waiting = [running.submit(one_by_one(name, 1)) for name in "ab"]
        for refuse in (lambda: running.bounds.check(Ticket()), lambda: running.submit(together())):
            with pytest.raises(OverloadedError, match="3 requests") as refused:
                refuse()
            assert refused.value.retry_after > 0
        assert waiting[0].cancel()
        assert running.queue.requests == 2
        waiting.append(running.submit(one_by_one("c", 1)))
        assert running.run(waiting[1:]) == ["b0", "c0"]


def test_bytes_are_bounded_but_a_single_request_may_have_more() -> None:
    with Running(max_bytes=100) as running:
        assert running.submit(one_by_one("large", 1), nbytes=500).result(WAIT)
        running.hold()
        first = running.submit(one_by_one("a", 1), nbytes=60)
        with pytest.raises(OverloadedError, match="VESSA_MAX_QUEUE_BYTES") as refused:
            running.submit(one_by_one("b", 1), nbytes=41)
        assert refused.value.retry_after > 0
        with pytest.raises(OverloadedError):
            running.bounds.check(Ticket(nbytes=41))
        second = running.submit(one_by_one("b", 1), nbytes=40)
        assert running.queue.nbytes == 100
        first.cancel()
        assert running.queue.nbytes == 40
        running.run([second])
        assert running.queue.nbytes == 0


def test_what_is_less_urgent_takes_no_place_from_others() -> None:
    with Running(max_requests=2, max_bytes=100) as running:
        running.hold()
        futures = [running.submit(one_by_one("interactive", 1))]
        for priority in (INTERACTIVE, BULK, BACKGROUND):
            with pytest.raises(OverloadedError):
                running.submit(one_by_one("refused", 1), priority=priority)
        futures[0].cancel()
        for priority in (BULK, INTERACTIVE):
            futures.append(running.submit(one_by_one(priority.name.lower(), 1), priority=priority))
        with pytest.raises(OverloadedError, match="3 requests"):
            running.submit(one_by_one("refused", 1), priority=BACKGROUND)
        assert running.run(futures[1:]) == ["interactive0", "bulk0"]
        running.hold()
        background = running.submit(one_by_one("background", 1), priority=BACKGROUND)
        large = running.submit(one_by_one("large", 1), nbytes=500)
        assert running.run([background, large]) == ["large0", "background0"]


def test_the_time_to_come_back_grows_with_the_queue_and_with_what_requests_take(
    clock: Clock,
) -> None:
    def retry_after(running: Running) -> float:
        with pytest.raises(OverloadedError) as refused:
            running.submit(one_by_one("refused", 1), nbytes=1 << 31)
        return float(refused.value.retry_after)

    with Running(Device(clock)) as running:
        for looks in (1, 8):
            for _ in range(50):
                running.submit(one_by_one("a", looks)).result(WAIT)
            running.hold()
            waiting = [running.submit(one_by_one("b", looks), nbytes=1)]
            short = retry_after(running)
            waiting += [running.submit(one_by_one("b", looks)) for _ in range(8)]
            # The one that is held, and those that wait, take as long as the ones before.
            assert short == pytest.approx(2 * looks, rel=0.2)
            assert retry_after(running) == pytest.approx(10 * looks, rel=0.2)
            running.run(waiting)


@pytest.mark.parametrize(
    "error", [RuntimeError("of patient X"), MemoryError(), StopIteration(3), CancelledError()]
)
def test_an_error_of_one_look_in_a_batch_ends_its_request_only(error: Exception) -> None:
    with Running(max_batch=8) as running:
        running.device.failing["bad1"] = error
        running.hold()
        futures = [
            running.submit(together("good0", "good1")),
            running.submit(together("bad0", "bad1", "bad2")),
            running.submit(together("fine0")),
        ]
        with capture_logs() as logs:
            ran = running.run(futures)
        assert futures[0].result(WAIT) == ["GOOD0", "GOOD1"]
        assert futures[2].result(WAIT) == ["FINE0"]
        with pytest.raises(VessaError, match="internal error") as raised:
            futures[1].result(WAIT)
        assert type(raised.value) is VessaError
        assert max(ran.count(name) for name in ran) <= 2
        (line,) = logs
        assert line["event"] == "request.failed"
        assert set(line) == {"event", "kind", "at", "log_level"}
        assert re.fullmatch(
            r"(support_scheduler|vessa_server/scheduler/tasks)\.py:\d+ in [\w.]+", line["at"]
        )
        assert "patient" not in str(line)


def test_a_device_that_gives_too_few_predictions_fails_the_request() -> None:
    with Running(max_batch=4) as running:
        run = running.device.__call__
        running.scheduler._run_looks = lambda looks, pause: run(looks, pause)[1:]
        with pytest.raises(VessaError, match="internal error"):
            running.submit(together("a", "b")).result(WAIT)
        assert running.scheduler.alive


def test_a_request_may_handle_the_error_of_a_look_itself() -> None:
    def careful() -> Steps:
        try:
            yield from together("bad", "good")
        except InvalidRequestError:
            return (yield from together("other"))

    with Running() as running:
        running.device.failing["bad"] = InvalidRequestError("no")
        assert running.submit(careful()).result(WAIT) == ["OTHER"]
        assert running.device.ran == ["bad", "other"]


def test_an_error_between_looks_ends_its_request() -> None:
    def wrong(error: Exception) -> Steps:
        yield from together("first")
        raise error

    with Running() as running:
        with pytest.raises(InvalidRequestError, match="image: no"):
            running.submit(wrong(InvalidRequestError("image: no"))).result(WAIT)
        with pytest.raises(VessaError, match="internal error"):
            running.submit(wrong(KeyError("name of a patient"))).result(WAIT)
        assert running.submit(together()).result(WAIT) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("error", [KeyboardInterrupt(), GeneratorExit()])
def test_when_the_thread_dies_everything_is_settled_and_nothing_accepted(
    error: BaseException,
) -> None:
    with Running() as running:
        running.device.failing["fatal"] = error
        running.hold()
        futures = [
            running.submit(together("fatal")),
            running.submit(sharing("key", lambda: together("never"))),
            running.submit(one_by_one("b", 2), priority=BULK),
        ]
        with capture_logs() as logs:
            running.run(futures)
        for future in futures:
            with pytest.raises(UnavailableError):
                future.result(WAIT)
        assert not running.scheduler.alive
        assert running.queue.requests == 0
        with pytest.raises(UnavailableError):
            running.submit(together("late"))
        place = logs[0].pop("at")
        assert place.startswith("support_scheduler.py:")
        assert {"event": "scheduler.died", "kind": type(error).__name__} == {
            key: value for key, value in logs[0].items() if key != "log_level"
        }


def test_a_drained_scheduler_has_finished_what_it_accepted_and_refuses_more() -> None:
    with Running() as running:
        running.hold()
        accepted = running.submit(one_by_one("a", 5))
        background = running.submit(one_by_one("b", 5), priority=BACKGROUND)
        draining = threading.Thread(target=running.scheduler.drain, args=(time.monotonic() + WAIT,))
        draining.start()
        with pytest.raises(UnavailableError):
            background.result(WAIT)
        with pytest.raises(UnavailableError):
            running.submit(one_by_one("late", 1))
        running.device.gate.set()
        draining.join(WAIT)
        assert not draining.is_alive()
        assert accepted.result(0) == [f"A{i}" for i in range(5)]
        assert not running.scheduler.alive


def test_what_is_not_finished_at_the_deadline_of_a_drain_is_settled() -> None:
    with Running() as running:
        held = running.hold()
        futures = [running.submit(sharing("key", lambda: together("shared"))) for _ in range(3)]
        running.scheduler.drain(time.monotonic())
        for future in (held, *futures):
            with pytest.raises(UnavailableError, match="stopped"):
                future.result(0)
        assert running.queue.requests == 0
        running.device.gate.set()
        running.scheduler.drain(time.monotonic() + WAIT)
        assert running.device.ran == ["held0"]


def test_an_idle_scheduler_is_drained_at_once_and_a_second_time() -> None:
    with Running() as running:
        start = time.monotonic()
        running.scheduler.drain(start + 60)
        running.scheduler.drain(start + 60)
        assert time.monotonic() - start < 30
        assert not running.scheduler.alive
