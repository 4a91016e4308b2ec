"""The order of the images in training: a pure function of the seed, the data set and the epoch.

With window 0, an epoch is one permutation of all images. With a window of W shards, the shards are permuted, each W
consecutive shards form a window, and the images are permuted inside each window. So while a window is read, only its
shards must be on the disk of a node. Every image occurs once per epoch in both cases.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

ORDER_STREAM, FLIP_STREAM, TARGET_STREAM, PENALTY_STREAM, SHARD_STREAM, WINDOW_STREAM = range(6)
"""Kinds of independent random streams derived from one seed."""

MAX_STORED_PERMUTATION = 4_000_000
"""Largest permutation that is stored; each element of a larger one is computed when it is needed."""

NUM_FEISTEL_ROUNDS = 8
"""Number of rounds of `FeistelPermutation`: each half of a number is changed four times."""

NUM_CACHED_WINDOWS = 2
"""A batch can span two windows."""


def random_stream(seed: int, kind: int, *position: int) -> np.random.Generator:
    """Return the random generator of one kind of stream at one position."""
    return np.random.default_rng(np.random.SeedSequence([seed, kind, *position]))


class Permutation(Protocol):
    """A permutation of the numbers from 0 to N - 1."""

    def at(self, positions: slice) -> np.ndarray:
        """Return the numbers at a range of positions, int64 [n]."""


class StoredPermutation:
    """A permutation that is stored, with 4 bytes per element; equal to `stream.permutation(count)`."""

    def __init__(self, count: int, stream: np.random.Generator) -> None:
        self.numbers = np.arange(count, dtype=np.uint32)
        stream.shuffle(self.numbers)

    def at(self, positions: slice) -> np.ndarray:
        return self.numbers[positions].astype(np.int64)


class FeistelPermutation:
    """A permutation of any size that needs no memory: each number is computed from its position.

    A number below `a * b` has two digits, (left, right) with left < a and right < b. Each round of a Feistel network
    adds a hash of one digit to the other, modulo a or b, which can be reversed. So the network permutes the numbers
    below a * b, for any hash. It is applied again to a result that is not below `count` (cycle walking, Black and
    Rogaway 2002). That is rare, because a * b - count < a, and a is the square root of `count`.
    """

    def __init__(self, count: int, stream: np.random.Generator) -> None:
        self.count = count
        self.num_left = int(np.ceil(np.sqrt(count)))
        self.num_right = -(-count // self.num_left)
        self.keys = stream.integers(0, 2**64, NUM_FEISTEL_ROUNDS, dtype=np.uint64)

    def at(self, positions: slice) -> np.ndarray:
        numbers = self.encrypt(np.arange(*positions.indices(self.count), dtype=np.uint64))
        while (outside := np.flatnonzero(numbers >= self.count)).size:
            numbers[outside] = self.encrypt(numbers[outside])
        return numbers.astype(np.int64)

    def encrypt(self, numbers: np.ndarray) -> np.ndarray:
        """Apply the Feistel network to numbers below a * b, uint64 [n] => [n]."""
        num_left, num_right = np.uint64(self.num_left), np.uint64(self.num_right)
        left: np.ndarray = numbers // num_right
        right: np.ndarray = numbers % num_right
        for index, key in enumerate(self.keys):
            if index % 2:
                right = (right + mix_bits(left, key) % num_right) % num_right
            else:
                left = (left + mix_bits(right, key) % num_left) % num_left
        return np.asarray(left * num_right + right)


def mix_bits(numbers: np.ndarray, key: np.uint64) -> np.ndarray:
    """Hash numbers, uint64 [n] => [n], with the finalizer of SplitMix64 (Steele et al. 2014)."""
    mixed = numbers ^ key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))


def random_permutation(count: int, stream: np.random.Generator) -> Permutation:
    """Return a permutation of `count` numbers; it is stored unless it is large."""
    return (StoredPermutation if count <= MAX_STORED_PERMUTATION else FeistelPermutation)(count, stream)


class EpochOrder:
    """The order of one epoch of a data set: positions from 0 to N - 1 => indices into the N selected images.

    The selected images are in the order of the shards, and `counts` [S] are their numbers in each shard. The
    permutations of the two newest windows are kept.
    """

    def __init__(self, seed: int, dataset: int, epoch: int, counts: Sequence[int] | np.ndarray, window: int) -> None:
        self.seed, self.dataset, self.epoch = seed, dataset, epoch
        counts = np.asarray(counts, np.int64)
        self.shards = np.flatnonzero(counts)
        """The shards with selected images, in the order of the windows."""
        if window:
            self.shards = random_stream(seed, SHARD_STREAM, dataset, epoch).permutation(self.shards)
        self.window = window or max(1, len(self.shards))
        self.first_indices = (np.cumsum(counts) - counts)[self.shards]
        """Index of the first image of each shard in `self.shards`."""
        self.shard_starts = np.concatenate([[0], np.cumsum(counts[self.shards])])
        """Position of the first image of each shard if the images were not permuted, and N."""
        self.window_starts = np.append(self.shard_starts[: -1 : self.window], self.shard_starts[-1])
        """Position of the first image of each window, and N."""
        self.is_windowed = window > 0
        self.permutations: dict[int, Permutation] = {}

    def __len__(self) -> int:
        return int(self.shard_starts[-1])

    @property
    def num_windows(self) -> int:
        return len(self.window_starts) - 1

    def window_of(self, position: int) -> int:
        """Return the window that contains a position."""
        return int(np.searchsorted(self.window_starts, position, "right")) - 1

    def shards_of(self, window: int) -> np.ndarray:
        """Return the shards of a window, [W] or fewer."""
        return self.shards[window * self.window : (window + 1) * self.window]

    def __getitem__(self, positions: slice) -> np.ndarray:
        """Return the indices at a range of positions, int64 [n]."""
        start, stop, _ = positions.indices(len(self))
        if start >= stop:
            return np.zeros(0, np.int64)
        windows = range(self.window_of(start), self.window_of(stop - 1) + 1)
        return np.concatenate([self.indices_in_window(window, start, stop) for window in windows])

    def indices_in_window(self, window: int, start: int, stop: int) -> np.ndarray:
        """Return the indices at the positions of a window that are in a range, int64 [n]."""
        window_start, window_end = (int(border) for border in self.window_starts[window : window + 2])
        local = slice(max(start, window_start) - window_start, min(stop, window_end) - window_start)
        unpermuted = window_start + self.get_permutation(window).at(local)
        if not self.is_windowed:
            return np.asarray(unpermuted)
        shard = np.searchsorted(self.shard_starts, unpermuted, "right") - 1
        return np.asarray(self.first_indices[shard] + unpermuted - self.shard_starts[shard])

    def get_permutation(self, window: int) -> Permutation:
        """Return the permutation of the images of a window."""
        if window not in self.permutations:
            newest = list(self.permutations.items())[1 - NUM_CACHED_WINDOWS :]
            count = int(self.window_starts[window + 1] - self.window_starts[window])
            stream = (
                random_stream(self.seed, WINDOW_STREAM, self.dataset, self.epoch, window)
                if self.is_windowed
                else random_stream(self.seed, ORDER_STREAM, self.dataset, self.epoch)
            )
            self.permutations = {**dict(newest), window: random_permutation(count, stream)}
        return self.permutations[window]
