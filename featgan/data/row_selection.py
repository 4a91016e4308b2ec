"""The rows of a split that a condition uses, without an array of all of them."""

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

BLOCK_ROWS = 512
"""Rows whose known rows are counted together; a lookup unpacks the bits of one block."""

CHUNK_ROWS = 1 << 20
"""Rows whose labels are read at a time; a multiple of BLOCK_ROWS."""

LOOKUPS_PER_CALL = 4096
"""Blocks unpacked at a time, which bounds memory use."""


class RowSelection(Protocol):
    """An increasing sequence of n rows of a split with N rows."""

    def __len__(self) -> int:
        """Return n."""

    def __getitem__(self, indices: np.ndarray | slice) -> np.ndarray:
        """Return the rows, int64, at these indices (0 <= index < n) of the selection."""

    def __iter__(self) -> Iterator[int]:
        """Iterate over all rows."""

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """Return all rows, int64 [n]."""

    def counts_per_shard(self, starts: np.ndarray) -> np.ndarray:
        """Return the number of selected rows in each shard [S]; `starts` [S + 1] are its first rows, and N."""


class AllRows:
    """All N rows of a split."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, indices: np.ndarray | slice) -> np.ndarray:
        if isinstance(indices, slice):
            return np.arange(*indices.indices(self.count), dtype=np.int64)
        return np.asarray(indices).astype(np.int64)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.arange(self.count, dtype=dtype or np.int64)

    def counts_per_shard(self, starts: np.ndarray) -> np.ndarray:
        """Return the number of rows in each shard [S]."""
        return np.diff(starts)


class KnownRows:
    """The rows whose bit is set in a bitmap of N bits.

    A row is found by a binary search in the number of known rows before each block, and by the bits of its block. The
    bitmap has 1.25 MB for ten million rows.
    """

    def __init__(self, bitmap: np.ndarray) -> None:
        """Create a selection from a bitmap, uint8 [N / BLOCK_ROWS, BLOCK_ROWS / 8], lowest bit first."""
        assert bitmap.shape[1:] == (BLOCK_ROWS // 8,), bitmap.shape
        self.bitmap = bitmap
        counts = np.bitwise_count(bitmap).sum(1, dtype=np.int64)
        self.block_starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])

    def __len__(self) -> int:
        return int(self.block_starts[-1])

    def __getitem__(self, indices: np.ndarray | slice) -> np.ndarray:
        if isinstance(indices, slice):
            indices = np.arange(*indices.indices(len(self)), dtype=np.int64)
        rows = np.empty(len(indices), np.int64)
        for start in range(0, len(indices), LOOKUPS_PER_CALL):
            rows[start : start + LOOKUPS_PER_CALL] = self.find_rows(indices[start : start + LOOKUPS_PER_CALL])
        return rows

    def __iter__(self) -> Iterator[int]:
        return iter(np.asarray(self).tolist())

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        rows = np.flatnonzero(np.unpackbits(self.bitmap, bitorder="little"))
        return rows if dtype is None else rows.astype(dtype)

    def find_rows(self, indices: np.ndarray) -> np.ndarray:
        """Return the rows at these indices of the selection."""
        blocks = np.searchsorted(self.block_starts, indices, side="right") - 1
        ranks = np.asarray(indices) - self.block_starts[blocks]
        ends = np.cumsum(self.unpack_blocks(blocks), axis=1, dtype=np.int16)
        return blocks * BLOCK_ROWS + (ends <= ranks[:, None]).sum(1)

    def counts_per_shard(self, starts: np.ndarray) -> np.ndarray:
        """Return the number of known rows in each shard [S]."""
        chunks = [starts[start : start + LOOKUPS_PER_CALL] for start in range(0, len(starts), LOOKUPS_PER_CALL)]
        return np.diff(np.concatenate([self.count_before(chunk) for chunk in chunks]))

    def count_before(self, rows: np.ndarray) -> np.ndarray:
        """Return the number of known rows before each row [n]."""
        blocks, positions = np.divmod(rows, BLOCK_ROWS)
        in_block = self.unpack_blocks(np.minimum(blocks, len(self.bitmap) - 1)) if len(self.bitmap) else 0
        is_before = np.arange(BLOCK_ROWS) < positions[:, None]
        return self.block_starts[blocks] + (is_before & (np.asarray(in_block) > 0)).sum(1)

    def unpack_blocks(self, blocks: np.ndarray) -> np.ndarray:
        """Return the bits of blocks [n], uint8 [n, BLOCK_ROWS]."""
        return np.unpackbits(self.bitmap[blocks], axis=1, bitorder="little")


def select_rows(count: int, is_known: Callable[[slice], ArrayLike]) -> RowSelection:
    """Return the rows for which `is_known` is true; it returns bool [n] for n consecutive rows."""
    bitmap = np.zeros((-(-count // BLOCK_ROWS), BLOCK_ROWS // 8), np.uint8)
    flat, num_known = bitmap.reshape(-1), 0
    for start in range(0, count, CHUNK_ROWS):
        known = np.asarray(is_known(slice(start, min(count, start + CHUNK_ROWS))), bool)
        packed = np.packbits(known, bitorder="little")
        flat[start // 8 : start // 8 + len(packed)] = packed
        num_known += int(np.count_nonzero(known))
    return AllRows(count) if num_known == count else KnownRows(bitmap)
