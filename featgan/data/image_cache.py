"""Decoded images kept in memory where they fit: from the second epoch on they are copied in place of decoded."""

import math
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featgan.data.shards.shard_set import Split

MOST_SHARE = 1 / 4
"""Of the memory that is to be had, for all processes of a machine together."""

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where a container's limit stands, in either version of control groups."""


class DecodedImages:
    """A split's images by row, decoded at their first use; forked workers fill and read the same memory.

    What is not there yet costs memory only once it is. A process that is not forked but spawned decodes by itself.
    """

    def __init__(self, split: Split) -> None:
        self.split = split
        count, side = len(split), split.image_size
        # Anonymous and shared: no file, and no limit of /dev/shm, which containers keep small.
        memory = np.frombuffer(mmap.mmap(-1, needed_bytes(split)), np.uint8)
        self.known: np.ndarray | None = memory[:count]
        self.images = memory[count:].reshape(count, 3, side, side)

    def __getstate__(self) -> dict[str, Any]:
        return {"split": self.split, "known": None, "images": None}

    def decode(self, rows: np.ndarray, mirrored: np.ndarray) -> Tensor:
        """As `Split.decode`."""
        if self.known is None:
            return self.split.decode(rows, mirrored)
        missing = rows[self.known[rows] == 0]
        if len(missing):
            self.images[missing] = self.split.decode(missing).numpy()
            self.known[missing] = 1  # last, so that another process never takes a half-written image
        found = self.images[rows]
        found[mirrored] = found[mirrored][..., ::-1]
        return torch.from_numpy(found)


def needed_bytes(split: Split) -> int:
    """Of the images, and a mark for each."""
    return len(split) * (3 * split.image_size**2 + 1)


def keep_where_it_pays(split: Split, num_images: int) -> Split | DecodedImages:
    """A split for a training that takes `num_images`: kept decoded when it is seen more than once and fits."""
    fits = needed_bytes(split) * local_processes() <= MOST_SHARE * free_memory()
    if num_images <= len(split) or not fits:
        return split
    try:
        return DecodedImages(split)
    except OSError:  # a system that promises no more memory than it has
        return split


def local_processes() -> int:
    """Processes of this training on this machine, as launchers tell."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def free_memory() -> float:
    """Bytes that the system, the container and the job leave to be taken; 0 where nobody tells."""
    lines = read("/proc/meminfo").splitlines()
    free = [1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    limits = [float(text) for text in map(read, CGROUP_LIMITS) if text.strip().isdecimal()]
    job = float(os.environ.get("SLURM_MEM_PER_NODE", "0")) * 2**20 or math.inf
    return min(*free, *limits, job) if free else 0.0


def read(path: str) -> str:
    """A small text; empty where it cannot be read."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""
