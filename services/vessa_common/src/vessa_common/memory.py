"""Memory that a process gives back and asks for again."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

# Numbers of glibc's options (malloc.h).
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
# Older ones refuse more than 32 MiB from the heap.
KEPT_BYTES, FROM_HEAP_BYTES = 2**31 - 1, (2**30, 2**25)


def keep_freed() -> bool:
    """Let glibc keep what is freed, for the next update; False where there is another library.

    Otherwise large tensors are mapped anew each time, and the kernel fills their pages with zeros:
    a sixth of the time of a training on a CPU, against a few megabytes more.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return set_thresholds(mallopt)


def set_thresholds(mallopt: Callable[[int, int], int]) -> bool:
    """Take large blocks from the heap, and keep them there; False, and nothing, where it refuses.

    In this order: to keep much of a heap that large blocks are not taken from would only cost.
    """
    taken = any(mallopt(MMAP_THRESHOLD, size) for size in FROM_HEAP_BYTES)
    return taken and bool(mallopt(TRIM_THRESHOLD, KEPT_BYTES))
