"""An in-memory cache of decoded images: from the second epoch on, images are copied instead of decoded."""

import mmap
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featgan.data.shards.split import Split
from featgan.system.resources import share_of_memory

MAX_MEMORY_SHARE = 1 / 4
"""Share of a process's memory that its cache may use."""


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

    def count_decoded(self, rows: slice) -> int:
        """Return how many of these images need not be read again."""
        return 0 if self.is_decoded is None else int(np.count_nonzero(self.is_decoded[rows]))

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
    fits = required_bytes(split) <= MAX_MEMORY_SHARE * (share_of_memory() or 0)
    if num_images <= len(split) or not fits:
        return split
    try:
        return DecodedImageCache(split)
    except OSError:  # systems without memory overcommit
        return split
