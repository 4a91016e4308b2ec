"""Tensors in memory that forked processes share: workers pass batches on without files and without /dev/shm.

Containers often have a /dev/shm of only 64 MB, where torch places the tensors that a worker process returns. An
anonymous shared map is not limited by it.
"""

import math
import mmap
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from featgan.errors import UserError

ALIGNMENT = 64
"""Every tensor starts at a multiple of this number of bytes, the size of a cache line."""

MAX_TENSORS = 64
"""Maximum number of tensors in one slot."""


class TensorLayout(NamedTuple):
    """Where a tensor is in a slot: its first byte, data type and shape."""

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.start + math.prod(self.shape) * self.dtype.itemsize

    def view(self, slot: Tensor) -> Tensor:
        """Return the tensor in a slot, without a copy."""
        return slot[self.start : self.end].view(self.dtype).view(self.shape)


class SharedSlots:
    """Slots of shared memory: a process writes named tensors into a slot, and another one reads copies of them.

    The processes must agree on who uses a slot, and pass on what `write` returns. Create the slots before forking.
    """

    def __init__(self, num_slots: int, num_bytes: int) -> None:
        """Reserve slots for tensors of `num_bytes` bytes each. Raises UserError if there is too little memory.

        A page of memory is in use only after it was written to.
        """
        self.slot_bytes = -(-(num_bytes + MAX_TENSORS * ALIGNMENT) // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            memory = mmap.mmap(-1, num_slots * self.slot_bytes)
        except OSError:
            raise UserError(
                f"the batches of the data workers need {num_slots * self.slot_bytes / 1e9:.1f} GB of memory, which are "
                "not available; lower training.num_workers or training.batch_size"
            ) from None
        self.slots = torch.from_numpy(np.frombuffer(memory, np.uint8).reshape(num_slots, self.slot_bytes))

    def write(self, slot: int, tensors: Mapping[str, Tensor]) -> dict[str, TensorLayout]:
        """Write tensors into a slot and return where they are."""
        layouts, start = {}, 0
        for name, tensor in tensors.items():
            layout = layouts[name] = TensorLayout(start, tensor.dtype, tuple(tensor.shape))
            assert layout.end <= self.slot_bytes, f"tensors of more than {self.slot_bytes} bytes"
            layout.view(self.slots[slot]).copy_(tensor)
            start = -(-layout.end // ALIGNMENT) * ALIGNMENT
        return layouts

    def read(self, slot: int, layouts: Mapping[str, TensorLayout]) -> dict[str, Tensor]:
        """Return copies of the tensors in a slot, in memory of this process."""
        return {name: layout.view(self.slots[slot]).clone() for name, layout in layouts.items()}
