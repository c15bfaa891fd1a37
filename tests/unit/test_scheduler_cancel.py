"""Requests that are cancelled, at any moment and from any thread."""

from __future__ import annotations

import gc
import random
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, wait
from itertools import count
from typing import Any, cast

import numpy as np
import pytest
from structlog.testing import capture_logs

from support_scheduler import BACKGROUND, BULK, WAIT, Device, Running, one_by_one, sharing, together
from vessa_client import AnyArray, DeadlineError, InvalidRequestError, OverloadedError, VessaError
from vessa_server.cases.case import Shared, Steps
from vessa_server.inference.look import AnyLook

Submit = Callable[[], Future[Any]]


class Moments:
    """Cancels a request at the n-th moment at which anything happens in the scheduler's thread."""

    def __init__(self, cancel_at: int) -> None:
        self.cancel_at = cancel_at
        self.passed = 0
        self.cancel: Callable[[], object] = lambda: None

    def pass_one(self) -> None:
        if self.passed == self.cancel_at:
            self.cancel()
        self.passed += 1

    def watched(self, steps: Steps) -> Steps:
        """The same generator; each time it goes on and each time it stops is a moment."""
        sent: Any = None
        while True:
            self.pass_one()
            try:
                wanted = steps.send(sent)
            except StopIteration as end:
                self.pass_one()
                return end.value
            self.pass_one()
            sent = yield wanted


class WatchedDevice(Device):
    """Each batch that begins and ends is a moment."""

    def __init__(self, moments: Moments) -> None:
        super().__init__()
        self.moments = moments

    def __call__(self, looks: Any, pause: Any) -> Any:
        self.moments.pass_one()
        found = super().__call__(looks, pause)
        pause()
        self.moments.pass_one()
        return found


@pytest.mark.parametrize("max_batch", [1, 4])
@pytest.mark.parametrize("target", range(4))
def test_a_request_may_be_cancelled_at_every_moment(target: int, max_batch: int) -> None:
    for moment in count():
        if not _cancelled_at(moment, target, max_batch):
            assert moment > 20
            return


def _cancelled_at(moment: int, target: int, max_batch: int) -> bool:
    """Whether ``moment`` came; all others have their answers and nothing is left."""
    moments = Moments(moment)

    def work() -> Steps:
        return moments.watched(one_by_one("shared", 3))

    expected: list[Any] = [
        (["SHARED0", "SHARED1", "SHARED2"], ["A"]),
        (["SHARED0", "SHARED1", "SHARED2"], ["B"]),
        ["C0", "C1", "C2"],
        ["D0", "D1"],
    ]
    device = WatchedDevice(moments)
    with Running(device, max_batch=max_batch) as running:
        running.hold()
        moments.passed = 0
        steps = [
            sharing("key", work, "a"),
            sharing("key", work, "b"),
            one_by_one("c", 3),
            together("d0", "d1"),
        ]
        futures = [
            running.submit(moments.watched(s), client=str(n), priority=BULK if n == 1 else 0)
            for n, s in enumerate(steps)
        ]
        ran_at_cancel: list[int] = []

        def cancel() -> None:
            if futures[target].cancel():
                ran_at_cancel.append(len(device.ran))

        moments.cancel = cancel
        device.gate.set()
        for number, future in enumerate(futures):
            try:
                assert future.result(WAIT) == expected[number]
            except CancelledError:
                assert number == target
        came = moments.passed > moment
        # Later looks than the one at which it was cancelled are of others.
        own = ("a", "b", "c", "d")[target]
        for start in ran_at_cancel:
            assert not [name for name in device.ran[start + max_batch :] if name[0] == own]
        running.submit(together()).result(WAIT)
        assert running.empty
    return came


def test_cancelled_requests_run_no_further_look() -> None:
    with Running() as running:
        running.hold()
        gone = [running.submit(one_by_one(name, 2)) for name in "ab"]
        stays = running.submit(one_by_one("c", 2))
        running.device.before["b0"] = gone[1].cancel
        gone[0].cancel()
        assert running.run([stays]) == ["b0", "c0", "c1"]
        assert running.empty


def test_shared_work_is_dropped_with_the_last_who_waits_for_it() -> None:
    with Running() as running:
        running.hold()

        def steps() -> Steps:
            return sharing("key", lambda: one_by_one("shared", 4))

        alone = running.submit(steps(), client="a")
        running.device.before["shared1"] = alone.cancel
        other = running.submit(one_by_one("other", 1), client="a")
        assert running.run([other]) == ["shared0", "shared1", "other0"]
        assert running.empty


def test_shared_work_goes_on_for_those_who_stay() -> None:
    with Running() as running:
        running.hold()

        def steps() -> Steps:
            return sharing("key", lambda: one_by_one("shared", 4))

        futures = [running.submit(steps(), client=name) for name in "abc"]
        running.device.before["shared2"] = futures[0].cancel
        running.device.before["shared3"] = futures[2].cancel
        ran = running.run([futures[1]])
        assert ran == [f"shared{i}" for i in range(4)]
        assert futures[1].result(WAIT)[0] == [f"SHARED{i}" for i in range(4)]
        assert running.empty


def test_a_thousand_waiting_requests_that_go_leave_nothing() -> None:
    with Running(max_requests=1001) as running:
        running.hold()
        futures = [
            running.submit(sharing(f"{n % 7}", lambda: together("shared")), client=str(n % 13))
            for n in range(1000)
        ]
        threads = [
            threading.Thread(target=lambda k=k: [f.cancel() for f in futures[k::8]])
            for k in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
        assert running.queue.requests == 1
        running.run([])
        running.submit(together()).result(WAIT)
        assert running.device.ran == ["held0"]
        assert running.empty


@pytest.mark.parametrize("ends", ["answer", "error", "wrong", "cancel", "cancel waiting", "late"])
def test_a_request_that_has_ended_is_forgotten_without_the_garbage_collector(ends: str) -> None:
    """Its arrays are megabytes, of which a collector knows nothing."""

    def steps(image: AnyArray) -> Steps:
        yield cast("list[AnyLook]", ["first"])
        if ends == "error":
            raise InvalidRequestError("no")
        if ends == "wrong":
            raise RuntimeError("no")
        yield Shared("key", lambda: together("shared"))
        return float(image.sum())

    gc.collect()
    gc.disable()
    try:
        with Running() as running:
            running.hold()
            image = np.zeros(10)
            kept = weakref.ref(image)
            future = running.submit(steps(image), deadline=-1.0 if ends == "late" else None)
            del image
            if ends.startswith("cancel"):
                look = "first" if ends == "cancel" else "shared"
                running.device.before[look] = future.cancel
            running.device.gate.set()
            wait([future], WAIT)
            running.submit(together()).result(WAIT)  # the thread is done with the other one
            assert kept() is None
            assert future.cancelled() == ends.startswith("cancel")
    finally:
        gc.enable()


@pytest.mark.parametrize("max_batch", [1, 8])
@pytest.mark.parametrize("seed", range(3))
def test_random_requests_and_cancellations_from_many_threads_leave_nothing(
    seed: int, max_batch: int
) -> None:
    outcomes: list[str] = []
    with Running(max_batch=max_batch, max_requests=48, max_bytes=200, max_wait=1e-4) as running:
        running.device.failing = {f"s{n}": RuntimeError("no") for n in range(3)}
        threads = [
            threading.Thread(
                target=lambda k=k: outcomes.extend(_random_requests(running, f"{seed}-{k}", 250))
            )
            for k in range(8)
        ]
        with capture_logs() as logs:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(120)
                assert not thread.is_alive()
        assert {line["kind"] for line in logs} == {"RuntimeError"}
        assert len(outcomes) == 2000
        assert {"right", "cancelled", "late", "failed"} == set(outcomes)
        running.submit(together()).result(WAIT)
        assert running.empty
        assert running.scheduler.alive


def _random_requests(running: Running, seed: str, number: int) -> list[str]:
    """Submit and cancel at random; returns how each request ended."""
    rng = random.Random(seed)
    sent: list[tuple[Future[Any], Any]] = []
    outcomes: list[str] = []
    while len(sent) < number:
        steps, expected = _random_request(rng)
        ticket = {
            "client": str(rng.randrange(5)),
            "priority": rng.choice([0, BULK, BACKGROUND]),
            "nbytes": rng.randrange(20),
            "deadline": -1.0 if rng.random() < 0.1 else None,
        }
        try:
            sent.append((running.submit(steps, **ticket), expected))
        except OverloadedError:
            for future, _ in sent[-3:]:  # there will be room when these are done
                if rng.random() < 0.3:
                    future.cancel()
                wait([future], WAIT)
        if sent and rng.random() < 0.3:
            rng.choice(sent[-20:])[0].cancel()
    for future, expected in sent:
        try:
            assert future.result(WAIT) == expected
            outcomes.append("right")
        except CancelledError:
            outcomes.append("cancelled")
        except DeadlineError:
            outcomes.append("late")
        except VessaError:
            outcomes.append("failed")
    return outcomes


def _random_request(rng: random.Random) -> tuple[Steps, Any]:
    name = rng.choice("pqrs")
    if rng.random() < 0.5:
        looks = rng.randrange(4)
        answer = [f"{name.upper()}{n}" for n in range(looks)]
        if rng.random() < 0.5:
            return one_by_one(name, looks), answer
        return together(*(f"{name}{n}" for n in range(looks))), answer
    key = rng.choice(["", "0", "1"])
    work = (["INNER0", "INNER1"], [f"OUTER{key}"])

    def inner() -> Steps:
        return one_by_one("inner", 2)

    def outer() -> Steps:
        return sharing("inner", inner, f"outer{key}")

    return sharing(f"outer{key}", outer, f"own{name}"), (work, [f"OWN{name.upper()}"])
