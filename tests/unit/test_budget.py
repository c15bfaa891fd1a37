"""Batches run in parts that fit into a device's memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vessa_server.runtime.budget import USED_SHARE, CudaMeter, MemoryBudget, Taken


class _Device:
    """A device of so many bytes, on which a row takes some; refuses what does not fit."""

    def __init__(self, size: int, row: int) -> None:
        self.size, self.row = size, row
        self.forwards: list[list[int]] = []
        self.released = 0
        self.held = 0  # by a forward that failed, as long as its error is handled
        self._peak = 0

    def free(self) -> int:
        return self.size - self.held

    @contextmanager
    def measuring(self) -> Iterator[Taken]:
        self._peak = 0
        taken = Taken(0)
        yield taken
        taken.nbytes = self._peak

    def release(self) -> None:
        assert sys.exc_info()[0] is None, "the error still holds memory"
        self.released += 1
        self.held = 0

    def forward(self, part: Sequence[int]) -> list[int]:
        needed = self.row * sum(part)
        if needed > self.size:
            self.held = self.size
            raise torch.OutOfMemoryError("no room")
        self.forwards.append(list(part))
        self._peak = needed
        return list(part)


def _run(budget: MemoryBudget, device: _Device, items: list[int]) -> list[int]:
    parts = budget.parts("encode", items, lambda rows: rows, device.forward)
    return [item for part in parts for item in part]


@given(
    items=st.lists(st.integers(1, 9), max_size=40),
    row=st.integers(1, 50),
    most=st.integers(1, 64),
)
def test_all_items_run_in_order_in_parts_that_fit(items: list[int], row: int, most: int) -> None:
    device = _Device(9 * 50, row)
    assert _run(MemoryBudget(device, most), device, items) == items
    for part in device.forwards[1:]:
        fits = sum(part) * row <= USED_SHARE * device.size and sum(part) <= most
        assert fits or len(part) == 1


def test_the_first_forward_is_one_item_and_the_rest_as_many_as_fit() -> None:
    device = _Device(1000, 80)
    budget = MemoryBudget(device, 64)
    _run(budget, device, [1] * 25)
    assert [len(part) for part in device.forwards] == [1, 10, 10, 4]
    assert budget.item_bytes == {"encode": 80}


def test_a_device_with_less_room_than_measured_gets_smaller_parts() -> None:
    device = _Device(1000, 80)
    budget = MemoryBudget(device, 64)
    _run(budget, device, [1] * 11)
    device.forwards.clear()
    device.row = 300  # larger images, or others on the device
    assert _run(budget, device, [1] * 10) == [1] * 10
    assert device.released
    assert max(map(len, device.forwards)) <= 3


def test_rows_that_take_far_more_than_measured_end_in_small_parts() -> None:
    """As those with a text do, which are of the same step as those without."""
    device = _Device(1000, 1)
    budget = MemoryBudget(device, 64)
    _run(budget, device, [1] * 64)
    device.row = 600
    assert _run(budget, device, [1] * 64) == [1] * 64
    assert device.released <= 6


def test_without_room_for_one_item_the_error_is_passed_on() -> None:
    device = _Device(10, 80)
    with pytest.raises(torch.OutOfMemoryError):
        _run(MemoryBudget(device, 64), device, [1])


def test_without_a_meter_the_largest_batch_counts() -> None:
    device = _Device(10_000, 1)
    assert _run(MemoryBudget(None, 4), device, [1] * 10) == [1] * 10
    assert [len(part) for part in device.forwards] == [4, 4, 2]


def test_parts_grow_again_where_others_have_left_the_device() -> None:
    device = _Device(1000, 80)
    budget = MemoryBudget(device, 64)
    _run(budget, device, [1] * 11)
    device.size = 200
    _run(budget, device, [1] * 9)
    device.size = 1000
    device.forwards.clear()
    _run(budget, device, [1] * 10)
    assert [len(part) for part in device.forwards] == [10]


class _Allocator:
    """Stands for the GPU's: bytes in use and the most since the last reset."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.used = self.peak = 0
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: self.used)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: self.peak)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", self._reset)

    def take(self, nbytes: int) -> None:
        self.used += nbytes
        self.peak = max(self.peak, self.used)

    def _reset(self, _: torch.device) -> None:
        self.peak = self.used


def test_a_forward_in_the_pause_of_another_is_measured_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = _Allocator(monkeypatch)
    gpu.take(1000)  # weights
    meter = CudaMeter(torch.device("cuda"))
    with meter.measuring() as outer:
        gpu.take(50)
        gpu.take(-20)
        with meter.measuring() as inner:
            gpu.take(700)
            gpu.take(-700)
        assert inner.nbytes == 700
        with meter.measuring():
            gpu.take(300)  # features that are kept
        gpu.take(40)
    assert outer.nbytes == 70
    with meter.measuring() as after:
        gpu.take(5)
    assert after.nbytes == 5
