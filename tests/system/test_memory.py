"""Freed memory stays in the heap of the process instead of being returned to the system."""

import os
import platform
import subprocess
import sys

import pytest

MEMORY_PROGRAM = """
import ctypes, sys
import numpy as np
from featgan.system.memory import keep_freed_memory

class Heap(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    _fields_ = [(name, ctypes.c_size_t) for name in names]

if sys.argv[1] != "return":
    assert keep_freed_memory() == (sys.argv[1] == "keep")
np.empty(50 << 20, np.uint8).fill(1)
library = ctypes.CDLL(None)
library.mallinfo2.restype = Heap
print(library.mallinfo2().fordblks)
"""


def glibc_version() -> tuple[int, ...]:
    """Return the version of glibc; () for another C library."""
    name, version = platform.libc_ver()
    return tuple(map(int, version.split("."))) if name == "glibc" else ()


@pytest.mark.skipif(glibc_version() < (2, 33), reason="requires mallinfo2 of glibc 2.33")
def test_freed_memory_is_kept_unless_the_user_configures_malloc() -> None:
    def free_bytes(mode: str, **variables: str) -> int:
        command = [sys.executable, "-c", MEMORY_PROGRAM, mode]
        environment = os.environ | variables
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    assert free_bytes("keep") >= 50 << 20 > free_bytes("return")
    assert free_bytes("keep as configured", MALLOC_MMAP_THRESHOLD_="1048576") < 50 << 20
