"""The processes of a run: one, or several started by ``torchrun``."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

# How often a process looks whether the others have come.
MEETING_SECONDS = 0.02


@dataclass(frozen=True)
class Processes:
    """Rank of this process, number of all, and the device that this one computes on.

    ``store`` is what several ones leave each other word in.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    store: PrefixStore | None = field(default=None, compare=False)
    _meetings: Iterator[int] = field(default_factory=itertools.count, compare=False, repr=False)

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def meet(self) -> None:
        """Wait for the others, for as long as they take.

        To be called by all after what takes one process longer than another, and before the next
        collective: NCCL ends a process that waits in one for ten minutes.
        """
        if self.store is None:
            return
        number = next(self._meetings)
        if self.store.add(f"meeting_{number}", 1) == self.world:
            self.store.set(f"met_{number}", "all")
        while not self.store.check([f"met_{number}"]):
            time.sleep(MEETING_SECONDS)

    def wrap(self, module: nn.Module) -> nn.Module:
        """Let backward passes average gradients over the processes."""
        if self.world == 1:
            return module
        self.meet()  # before this each has read the data
        return DistributedDataParallel(module, broadcast_buffers=False)

    def mean(self, value: Tensor) -> Tensor:
        """Mean over the processes."""
        if self.world > 1:
            dist.all_reduce(value)
            value = value / self.world
        return value

    def highest(self, value: Tensor) -> Tensor:
        """Maximum over the processes; nobody waits for a GPU."""
        if self.world > 1:
            dist.all_reduce(value, dist.ReduceOp.MAX)
        return value

    def gather(self, value: Tensor) -> Tensor:
        """The values of all processes, joined on the first axis in the order of their ranks."""
        if self.world == 1:
            return value
        own = value.to(self.device).contiguous()  # NCCL sends what is on GPUs only
        parts = [torch.empty_like(own) for _ in range(self.world)]
        dist.all_gather(parts, own)
        return torch.cat(parts).to(value.device)


def own_device() -> torch.device:
    """The GPU of this process, as ``torchrun`` numbers them, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def postponed(module: nn.Module) -> AbstractContextManager[None]:
    """Backward passes inside add up gradients here and do not average them yet."""
    if isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return nullcontext()


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the group that ``torchrun`` describes: NCCL with GPUs, gloo without."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    device = own_device()
    if device.type == "cuda":
        # Else NCCL, and parts that ask for "cuda" alone, would mean the first one.
        torch.cuda.set_device(device)
    if world == 1:
        yield Processes(device=device)
        return
    store, rank, world = next(rendezvous("env://"))
    # After a restart the store still has the addresses of processes that died.
    start = f"start_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    own = PrefixStore(start, store)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=own,
        rank=rank,
        world_size=world,
    )
    try:
        yield Processes(rank=rank, world=world, device=device, store=own)
    finally:
        dist.destroy_process_group()


class BufferMean:
    """Running statistics of batch normalisation, averaged over the batches of an update.

    Each batch moves them from where the update began, and the mean is kept. So it does not
    matter which process had which batch. What a single batch made of them is the mean.
    """

    def __init__(self, module: nn.Module, batches: int) -> None:
        """Remember where they are; ``batches`` are those of all processes."""
        several = batches > 1
        self._buffers = [b for b in module.buffers() if several and b.is_floating_point()]
        self._start = [b.clone() for b in self._buffers]
        self._sums = [torch.zeros_like(b) for b in self._buffers]
        self._count = 0

    @torch.no_grad()
    def take(self) -> None:
        """Count what the last batch made of the buffers, and put back the beginning."""
        if not self._buffers:
            return
        torch._foreach_add_(self._sums, self._buffers)
        torch._foreach_copy_(self._buffers, self._start)
        self._count += 1

    @torch.no_grad()
    def settle(self, processes: Processes) -> None:
        """Put the mean into the buffers."""
        if not self._buffers:
            return
        means = list(torch._foreach_div(self._sums, self._count))
        if processes.world > 1:  # one message for all of them
            flat = processes.mean(torch.cat([mean.flatten() for mean in means]))
            parts = flat.split([mean.numel() for mean in means])
            means = [p.view_as(mean) for p, mean in zip(parts, means, strict=True)]
        torch._foreach_copy_(self._buffers, means)
