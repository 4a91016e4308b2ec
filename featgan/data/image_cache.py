"""An in-memory cache of decoded images: from the second epoch on, images are copied instead of decoded."""

import math
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featgan.data.shards.shard_set import Split

MAX_MEMORY_SHARE = 1 / 4
"""Share of the available memory that the caches of all processes on one machine may use."""

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Files with the memory limit of a container, for control groups v2 and v1."""


class DecodedImageCache:
    """The images of a split by row, decoded on first use; forked workers share the same memory.

    Memory is used only for images that have been decoded. A spawned process has no access to the shared memory and
    decodes every image itself.
    """

    def __init__(self, split: Split) -> None:
        self.split = split
        count, side = len(split), split.image_size
        # An anonymous shared map needs no file and is not limited by /dev/shm, which is small in containers.
        memory = np.frombuffer(mmap.mmap(-1, required_bytes(split)), np.uint8)
        self.is_decoded: np.ndarray | None = memory[:count]
        self.images = memory[count:].reshape(count, 3, side, side)

    def __getstate__(self) -> dict[str, Any]:
        return {"split": self.split, "is_decoded": None, "images": None}

    def decode(self, rows: np.ndarray, flipped: np.ndarray) -> Tensor:
        """Return images as uint8 [n, 3, S, S], like `Split.decode`."""
        if self.is_decoded is None:
            return self.split.decode(rows, flipped)
        missing = rows[self.is_decoded[rows] == 0]
        if len(missing):
            self.images[missing] = self.split.decode(missing).numpy()
            self.is_decoded[missing] = 1  # set last, so that another process never reads a partly written image
        images = self.images[rows]
        images[flipped] = images[flipped][..., ::-1]
        return torch.from_numpy(images)


def required_bytes(split: Split) -> int:
    """Return the size in bytes of a split's decoded images and one flag per image."""
    return len(split) * (3 * split.image_size**2 + 1)


def cache_if_it_fits(split: Split, num_images: int) -> Split | DecodedImageCache:
    """Return a cache of the split if training uses images more than once and they fit in memory, else the split.

    `num_images` is the number of images that training uses, with repetitions.
    """
    fits = required_bytes(split) * count_local_processes() <= MAX_MEMORY_SHARE * get_available_memory()
    if num_images <= len(split) or not fits:
        return split
    try:
        return DecodedImageCache(split)
    except OSError:  # systems without memory overcommit
        return split


def count_local_processes() -> int:
    """Return the number of processes of this run on this machine, as set by the launcher."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def get_available_memory() -> float:
    """Return the memory in bytes that the system, the container and the SLURM job allow; 0 if unknown."""
    lines = read_text_file("/proc/meminfo").splitlines()
    available = [1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    limits = [float(text) for text in map(read_text_file, CGROUP_LIMITS) if text.strip().isdecimal()]
    job_limit = float(os.environ.get("SLURM_MEM_PER_NODE", "0")) * 2**20 or math.inf
    return min(*available, *limits, job_limit) if available else 0.0


def read_text_file(path: str) -> str:
    """Return the content of a small text file, or an empty string if it cannot be read."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""
