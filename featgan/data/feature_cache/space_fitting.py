"""Fit the feature space to all training features of a cache, in bounded memory."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from featgan.data.feature_cache.storage import ShardArrays, open_split_arrays
from featgan.data.shards.split import Split
from featgan.features.feature_sums import BLOCK_ROWS, FeatureSums
from featgan.features.space import FeatureSpace
from featgan.system.array_files import ArrayColumn, ArrayError, read_arrays, write_npz
from featgan.system.progress import progress_bar
from featgan.system.resources import count_cores

logger = logging.getLogger(__name__)

MAX_SPACE_ROWS, MAX_SPACE_VALUES = 200_000, 1 << 26
"""Maximum number of feature vectors, and of values in them, that are in memory at once."""

MAX_QUANTILE_ROWS = 100_000
"""Maximum number of feature vectors whose quantiles are stored, if not all are in memory."""

NUM_GROUPS = 16
"""Groups of shards that are added up separately. The number is fixed, and so is the order of all sums."""

MAX_SINGLE_THREAD_FEATURES = 4096
"""Up to this width, each matrix is computed by one thread, because the rounding depends on the number of threads."""

VECTOR_COLUMNS = ("shift", "sum", "minimum", "maximum")
"""The arrays [F] in the file of a group."""


class SpaceFitting:
    """Fits the feature space to the features [N, 2, F] of a split, both the images and their horizontal flips.

    All rows are used. If they do not fit into memory, sums over groups of consecutive shards are added up, always
    in the same order: the space does not depend on the number of processes. Each process can save the sums of some
    groups with `save_groups`, before one process calls `fit`.
    """

    def __init__(self, folder: Path, split: Split, feature_dim: int) -> None:
        self.folder = folder
        self.split = split
        self.feature_dim = feature_dim
        self.groups = group_shards(split.shard_counts, NUM_GROUPS if len(split) >= NUM_GROUPS * feature_dim else 1)

    @property
    def fits_into_memory(self) -> bool:
        """Whether all rows are in memory at once. Below F rows, they need less memory than the covariance [F, F]."""
        max_rows = min(MAX_SPACE_ROWS, MAX_SPACE_VALUES // self.feature_dim)
        return 2 * len(self.split) <= max(max_rows, self.feature_dim - 1)

    def open_arrays(self) -> ShardArrays:
        """Open the features. Each thread has its own memory maps, which are closed at the end of its group."""
        return open_split_arrays(self.folder, self.split, "features", self.feature_dim)

    def fit(self, num_components: int | None) -> FeatureSpace | None:
        """Return the space, or None if all feature vectors are equal."""
        if self.fits_into_memory:
            return self.fit_all_rows(num_components)
        with deterministic_threads(self.feature_dim) as num_threads:
            sums = self.merge_groups(num_threads)
            return None if sums.is_constant else FeatureSpace.from_sums(sums, self.sample(), num_components)

    def fit_all_rows(self, num_components: int | None) -> FeatureSpace | None:
        """Return the space from all rows in memory, or None if all feature vectors are equal."""
        arrays, rows = self.open_arrays(), np.arange(len(self.split))
        features = np.concatenate([arrays.gather_rows(rows, False), arrays.gather_rows(rows, True)])
        if np.ptp(features, axis=0).max() == 0:
            return None
        return FeatureSpace.fit(torch.from_numpy(features), num_components)

    def sample(self) -> Tensor:
        """Return every k-th image and its flip, for the quantiles: float32 [n, F]."""
        max_rows = min(MAX_QUANTILE_ROWS, MAX_SPACE_VALUES // self.feature_dim)
        rows = np.arange(0, len(self.split), -(-len(self.split) // max(1, max_rows // 2)))
        blocks = self.open_arrays().read_in_order(rows, BLOCK_ROWS // 2, with_flips=True)
        return torch.from_numpy(np.concatenate(list(blocks)))

    def merge_groups(self, num_threads: int) -> FeatureSums:
        """Return the sums of all groups, added up in their order."""
        with (
            ThreadPoolExecutor(num_threads) as pool,
            progress_bar("fitting the space", len(self.split), "images") as bar,
        ):
            results = pool.map(self.load_group, range(len(self.groups)))
            merged = next(results)
            bar.advance(self.count_images(0))
            for group, sums in enumerate(results, start=1):
                merged.merge(sums)
                bar.advance(self.count_images(group))
        return merged

    def save_groups(self, rank: int, world_size: int) -> None:
        """Write the sums of the groups of one process; all features of these groups must have been written."""
        if self.fits_into_memory:
            return
        with deterministic_threads(self.feature_dim):
            for group in range(rank, len(self.groups), world_size):
                if self.read_group(group) is None:
                    write_sums(self.group_path(group), self.compute_group(group))

    def load_group(self, group: int) -> FeatureSums:
        """Return the sums of a group, from its file if a process has written it."""
        return self.read_group(group) or self.compute_group(group)

    def compute_group(self, group: int) -> FeatureSums:
        """Compute the sums of a group of shards. The shift is the first row of the group."""
        shards, arrays = self.groups[group], self.open_arrays()
        rows = np.arange(arrays.starts[shards.start], arrays.starts[shards.stop])
        sums = FeatureSums(torch.from_numpy(arrays.gather_rows(rows[:1], False)[0]))
        for block in arrays.read_in_order(rows, BLOCK_ROWS // 2, with_flips=True):
            sums.add(torch.from_numpy(block))
        return sums

    def count_images(self, group: int) -> int:
        """Return the number of images in a group."""
        shards = self.groups[group]
        return sum(self.split.shard_counts[shards.start : shards.stop])

    def group_path(self, group: int) -> Path:
        """Return the path of the sums of a group."""
        return self.folder / f".sums-{group:02d}.npz"

    def read_group(self, group: int) -> FeatureSums | None:
        """Read the sums of a group; None if there is no file, or none of this group."""
        return read_sums(self.group_path(group), self.feature_dim, 2 * self.count_images(group))

    def remove_saved_groups(self) -> None:
        """Remove the files of all groups."""
        for path in self.folder.glob(".sums-*.npz"):
            path.unlink(missing_ok=True)


@contextmanager
def deterministic_threads(feature_dim: int) -> Iterator[int]:
    """Yield the number of groups to compute at once, with one thread per matrix if the features are not too wide."""
    num_threads = torch.get_num_threads()
    if feature_dim > MAX_SINGLE_THREAD_FEATURES:
        yield 1
        return
    torch.set_num_threads(1)
    try:
        yield min(NUM_GROUPS, num_threads, count_cores())
    finally:
        torch.set_num_threads(num_threads)


def group_shards(counts: Sequence[int], num_groups: int) -> list[range]:
    """Divide shards into at most `num_groups` groups of consecutive shards with about equal numbers of images."""
    ends = np.cumsum(counts)
    borders = np.searchsorted(ends, np.arange(1, num_groups) * int(ends[-1]) / num_groups, side="left") + 1
    unique_borders = sorted({0, len(counts), *borders.tolist()})
    return [range(start, stop) for start, stop in pairwise(unique_borders)]


def write_sums(path: Path, sums: FeatureSums) -> None:
    """Write sums to an .npz file, atomically."""
    values = {"count": np.array([sums.count], np.float64)}
    values |= {name: getattr(sums, name).numpy() for name in VECTOR_COLUMNS}
    columns = {name: ArrayColumn(array.dtype, array.shape, [array]) for name, array in values.items()}
    products = sums.products.numpy()
    columns["products"] = ArrayColumn(products.dtype, products.shape, iter(np.array_split(products, NUM_GROUPS)))
    write_npz(path, columns)


def read_sums(path: Path, feature_dim: int, count: int) -> FeatureSums | None:
    """Read the sums of `count` rows from an .npz file; None if it is missing, damaged or has other rows."""
    if not path.exists():
        return None
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(VECTOR_COLUMNS, (feature_dim,))
    shapes |= {"count": (1,), "products": (feature_dim, feature_dim)}
    try:
        arrays = read_arrays(path, list(shapes))
    except ArrayError as error:
        logger.warning(f"{path}: {error}; computing the sums again")
        return None
    if any(arrays[name].dtype != np.float64 or arrays[name].shape != shape for name, shape in shapes.items()):
        return None
    if arrays["count"][0] != count:
        return None
    sums = FeatureSums(torch.from_numpy(arrays["shift"]))
    sums.count = count
    for name in ("sum", "products", "minimum", "maximum"):
        setattr(sums, name, torch.from_numpy(arrays[name]))
    return sums
