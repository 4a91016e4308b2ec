"""Freed memory is kept for the next tensor, where the C library would hand it back and have every page made anew."""

import ctypes
import os
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt."""

WISHES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
"""Environment variables by which a user tells glibc the same; what they say stands."""

MOST_KEPT, LARGEST = (1 << 31) - 1, (1 << 30, 32 << 20)
"""Bytes that may lie free, and up to which size tensors share one heap; older libraries refuse the larger size."""


@cache
def keep_freed_memory() -> bool:
    """For work on the CPU with the same sizes again and again; once a process.

    False where the library cannot, or the user has told it otherwise.

    glibc maps every allocation above 32 MB by itself and gives it back when it is freed, so that every activation of
    that size begins with empty pages, which the system has to clear, as large as those just freed.
    """
    if any(wish in os.environ for wish in WISHES):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    if not mallopt(M_TRIM_THRESHOLD, MOST_KEPT):
        return False
    return any(mallopt(M_MMAP_THRESHOLD, size) for size in LARGEST)
