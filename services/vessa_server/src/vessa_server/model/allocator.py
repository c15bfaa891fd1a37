"""Memory of a CPU model's intermediate results: kept for the next one, not given back each time."""

from __future__ import annotations

import ctypes
import functools

# Numbers of glibc's <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
LARGEST_KEPT, MOST_KEPT = 128 * 2**20, 256 * 2**20


@functools.cache
def keep_freed_memory() -> None:
    """Let this process keep up to 256 MiB that it has freed.

    glibc gives freed megabytes back to the system, which has to clear them when they are wanted
    again, at the next layer: up to a third of the time of a batch. Threads share one heap, for
    those of their own are too small. Without glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(M_TRIM_THRESHOLD, MOST_KEPT)
