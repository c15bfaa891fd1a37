"""Memory that a process gives back and asks for again."""

from __future__ import annotations

import ctypes

# Numbers of glibc's options (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES, _FROM_HEAP_BYTES = 2**31 - 1, 2**30


def keep_freed() -> bool:
    """Let glibc keep what is freed, for the next update; False where there is another library.

    Otherwise large tensors are mapped anew each time, and the kernel fills their pages with zeros:
    a sixth of the time of a training on a CPU, against a few megabytes more.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    kept: int = mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
    return bool(kept and mallopt(_MMAP_THRESHOLD, _FROM_HEAP_BYTES))
