"""The processes of a run: one, or several started by ``torchrun``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous


@dataclass(frozen=True)
class Processes:
    """Rank of this process, number of all, and the device that this one computes on."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the group that ``torchrun`` describes: NCCL with GPUs, gloo without."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        # Parts that ask for "cuda" alone mean this one.
        torch.cuda.set_device(device)
    if world == 1:
        yield Processes(device=device)
        return
    store, rank, world = next(rendezvous("env://"))
    # After a restart the store still has the addresses of processes that died.
    start = f"start_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore(start, store),
        rank=rank,
        world_size=world,
    )
    try:
        yield Processes(rank=rank, world=world, device=device)
    finally:
        dist.destroy_process_group()
