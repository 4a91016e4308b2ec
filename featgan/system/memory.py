"""Configure glibc to keep freed memory for the next tensors instead of returning it to the system."""

import ctypes
import os
from functools import cache

from featgan.system.limits import MAX_BATCH_PIXELS
from featgan.system.resources import share_of_memory

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameter numbers of glibc's mallopt."""

MALLOC_ENV_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
"""Environment variables with the same effect; if one is set, the user's value is kept."""

MAX_TRIM_THRESHOLD, MMAP_THRESHOLDS = (1 << 31) - 1, (1 << 30, 32 << 20)
"""Bytes that may stay free in the heap, and allocation sizes up to which the heap is used.

Older versions of glibc reject the larger size.
"""

MAX_KEPT_SHARE = 1 / 4
"""Share of a process's memory that may stay free in the heap; other processes of the node cannot use it."""


@cache
def keep_freed_memory() -> bool:
    """Keep freed memory in the heap, for CPU work that allocates the same sizes repeatedly.

    By default, glibc maps each allocation above 32 MB separately and unmaps it when it is freed. Each large activation
    then needs new pages, which the system must zero again. Returns False if the C library does not support this or
    the user has set one of MALLOC_ENV_VARIABLES. Runs once per process.
    """
    if any(variable in os.environ for variable in MALLOC_ENV_VARIABLES):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    memory = share_of_memory()
    max_kept_bytes = MAX_TRIM_THRESHOLD if memory is None else min(MAX_TRIM_THRESHOLD, int(MAX_KEPT_SHARE * memory))
    if not mallopt(M_TRIM_THRESHOLD, max_kept_bytes):
        return False
    return any(mallopt(M_MMAP_THRESHOLD, min(size, max_kept_bytes)) for size in MMAP_THRESHOLDS)


def choose_batch_size(image_size: int, max_batch_size: int) -> int:
    """Return how many square images a network runs at a time: fewer than `max_batch_size` if they are large."""
    return max(1, min(max_batch_size, MAX_BATCH_PIXELS // max(1, image_size**2)))
