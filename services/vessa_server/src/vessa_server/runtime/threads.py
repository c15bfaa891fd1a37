"""How many threads torch computes with, in each of the server's own threads.

Each thread that computes has helpers of its own, which spin while they wait for the next layer,
unless there are more of them than cores: then every layer has to wake them, which on a CPU takes
as long as the layer. So one thread computes with helpers, all others alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

T = TypeVar("T")
# Half of the cores: a training beside the server has the others, and is faster than where both
# compute with all (benchmarks/shared_cores.py). Asked before any thread was told to compute alone,
# which is what new ones then begin with.
DEFAULT = max(1, torch.get_num_threads() // (1 if "OMP_NUM_THREADS" in os.environ else 2))


def compute_with(threads: int) -> None:
    """From now on this thread computes with so many; 0 is half of the cores."""
    # Asking first: a thread takes the number of whoever was told last when it first needs one.
    torch.get_num_threads()
    torch.set_num_threads(threads or DEFAULT)


def compute_alone() -> None:
    """From now on this thread computes without helpers."""
    compute_with(1)


def compute_apart(threads: int, work: Callable[[], T]) -> T:
    """Do ``work`` in a thread whose helpers end with it."""
    with ThreadPoolExecutor(1, initializer=partial(compute_with, threads)) as pool:
        return pool.submit(work).result()
