"""Freed memory is used again: it stays in the heap, where otherwise it would go back to the system."""

import os
import platform
import subprocess
import sys

import pytest

CODE = """
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


def glibc() -> tuple[int, ...]:
    """Its version; () where another library is in use."""
    name, version = platform.libc_ver()
    return tuple(map(int, version.split("."))) if name == "glibc" else ()


@pytest.mark.skipif(glibc() < (2, 33), reason="only glibc keeps freed memory, and tells so (mallinfo2) from 2.33 on")
def test_freed_memory_is_kept_unless_the_user_says_otherwise() -> None:
    def free(wish: str, **variables: str) -> int:
        called = [sys.executable, "-c", CODE, wish]
        environment = os.environ | variables
        return int(subprocess.run(called, env=environment, capture_output=True, text=True, check=True).stdout)

    assert free("keep") >= 50 << 20 > free("return")
    assert free("keep as told", MALLOC_MMAP_THRESHOLD_="1048576") < 50 << 20
