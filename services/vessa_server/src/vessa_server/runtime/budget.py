"""How much of a batch fits on a device, measured while it works."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")
# Share of the free memory that a forward may take: the rest is for fragments and other streams.
USED_SHARE = 0.8


@dataclass
class Taken:
    """What a block took.

    Attributes:
        before: bytes that were in use when it began.
        nbytes: the most that was taken at once besides, without blocks within it.
    """

    before: int
    nbytes: int = 0


class Meter(Protocol):
    """Memory of a device, in bytes."""

    def free(self) -> int:
        """What could be taken now."""
        ...

    def measuring(self) -> AbstractContextManager[Taken]:
        """Watch a block; blocks may lie in each other."""
        ...

    def release(self) -> None:
        """Give back what is kept for later."""
        ...


class CudaMeter:
    """The memory of one GPU, as PyTorch's allocator sees it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._open: list[Taken] = []

    def free(self) -> int:
        """Free on the device, or kept by the allocator and not in use."""
        free, _ = torch.cuda.mem_get_info(self.device)
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return int(free + kept)

    @contextmanager
    def measuring(self) -> Iterator[Taken]:
        """Watch a block; blocks may lie in each other."""
        self._note()
        taken = Taken(torch.cuda.memory_allocated(self.device))
        self._open.append(taken)
        try:
            yield taken
        finally:
            self._note()
            self._open.pop()
            if self._open:  # what stays of this block is not the outer one's
                kept = torch.cuda.memory_allocated(self.device) - taken.before
                self._open[-1].before += kept

    def _note(self) -> None:
        """What the innermost block took so far is its own."""
        if self._open:
            taken = self._open[-1]
            peak = torch.cuda.max_memory_allocated(self.device)
            taken.nbytes = max(taken.nbytes, peak - taken.before)
        torch.cuda.reset_peak_memory_stats(self.device)

    def release(self) -> None:
        """Give the allocator's spare blocks back."""
        torch.cuda.empty_cache()


class MemoryBudget:
    """Runs batches in parts that fit. What an item of a step takes is measured by its forwards.

    The first forward of a step is one item. Without a meter, as on a CPU, ``max_batch`` alone
    counts.
    """

    def __init__(self, meter: Meter | None, max_batch: int) -> None:
        self.meter = meter
        self.max_batch = max_batch
        # The most bytes that an item of each step took.
        self.item_bytes: dict[str, int] = {}

    def parts(
        self,
        step: str,
        items: Sequence[T],
        weight: Callable[[T], int],
        forward: Callable[[Sequence[T]], R],
    ) -> Iterator[R]:
        """What ``forward`` gives for consecutive parts of ``items``.

        Args:
            step: whose forward it is.
            items: of a batch.
            weight: how many rows of the forward an item is.
            forward: runs a part.

        Raises:
            torch.OutOfMemoryError: there is no room for a single item.
        """
        start, most = 0, self.max_batch
        while start < len(items):
            end = start + self._count(step, items[start:], weight, most)
            try:
                result = self._measured(step, items[start:end], weight, forward)
            except torch.OutOfMemoryError:
                if self.meter is None or end - start == 1:
                    raise
                # These items take more than others did: half as many, and no more of them.
                most = max(1, sum(weight(item) for item in items[start:end]) // 2)
            else:
                yield result
                start = end
                continue
            self.meter.release()  # the error, which holds what the forward took, is gone by now

    def most_rows(self, step: str) -> int:
        """Rows that a forward of ``step`` may have now."""
        if self.meter is None:
            return self.max_batch
        taken = self.item_bytes.get(step)
        if taken is None:
            return 1
        return self.max_batch if taken == 0 else min(self.max_batch, self._fitting(taken))

    def _fitting(self, taken: int) -> int:
        assert self.meter is not None
        return max(1, int(USED_SHARE * self.meter.free()) // taken)

    def _count(self, step: str, items: Sequence[T], weight: Callable[[T], int], most: int) -> int:
        """How many of ``items`` the next forward takes, one at least."""
        left, count = min(most, self.most_rows(step)), 0
        for item in items:
            left -= weight(item)
            if left < 0 and count:
                break
            count += 1
        return count

    def _measured(
        self,
        step: str,
        part: Sequence[T],
        weight: Callable[[T], int],
        forward: Callable[[Sequence[T]], R],
    ) -> R:
        if self.meter is None:
            return forward(part)
        with self.meter.measuring() as taken:
            result = forward(part)
        rows = max(1, sum(weight(item) for item in part))
        self.item_bytes[step] = max(self.item_bytes.get(step, 0), taken.nbytes // rows)
        return result
