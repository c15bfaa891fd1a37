"""What services share: memory that is kept, and statistics averaged over processes."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from vessa_common import memory
from vessa_common.processes import BufferMean, Processes


@pytest.mark.parametrize(
    ("largest", "mapped"), [(2**40, 2**30), (2**25, 2**25), (0, None)], ids=["new", "old", "none"]
)
def test_nothing_is_kept_of_a_heap_that_large_blocks_are_not_taken_from(
    largest: int, mapped: int | None
) -> None:
    """As glibc of that kind answers, which cannot be had here."""
    chosen: list[tuple[int, int]] = []

    def mallopt(option: int, value: int) -> int:
        if option == memory.MMAP_THRESHOLD and value > largest:
            return 0
        chosen.append((option, value))
        return 1

    assert memory.set_thresholds(mallopt) is (mapped is not None)
    expected = [(memory.MMAP_THRESHOLD, mapped), (memory.TRIM_THRESHOLD, memory.KEPT_BYTES)]
    assert chosen == (expected if mapped is not None else [])


@dataclass(frozen=True)
class _Two(Processes):
    """The first of two processes, of which the other has nothing but zeros."""

    world: int = 2
    sent: list[int] = field(default_factory=list)

    def mean(self, value: Tensor) -> Tensor:
        self.sent.append(value.numel())
        return value / 2


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 3), st.integers(0, 9999))
def test_statistics_of_all_layers_are_one_message(
    channels: list[int], batches: int, seed: int
) -> None:
    torch.manual_seed(seed)
    layers = nn.ModuleList(nn.BatchNorm2d(count) for count in channels)
    buffers = [b for b in layers.buffers() if b.is_floating_point()]
    mean = BufferMean(layers, 2 * batches)
    taken = []
    for _ in range(batches):
        for buffer in buffers:
            buffer.copy_(torch.rand_like(buffer))
        taken.append([buffer.clone() for buffer in buffers])
        mean.take()
    two = _Two()
    mean.settle(two)
    assert two.sent == [2 * sum(channels)]
    for buffer, values in zip(buffers, zip(*taken, strict=True), strict=True):
        assert torch.allclose(buffer, torch.stack(values).mean(dim=0) / 2)
