"""The files of the training data that are read through the cache of the node, and whether they fit into it."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featgan.data.loader import TrainingSet, find_caches
from featgan.data.remote.cache_folder import GIGABYTE
from featgan.data.remote.node_cache import CacheItem, NodeCache
from featgan.errors import UserError


def cached_items(training_set: TrainingSet) -> list[list[CacheItem]]:
    """Return the files of each shard that are read through the cache; empty if none are."""
    columns = [items for files in training_set.shard_files if (items := files.items())]
    return [list(items) for items in zip(*columns, strict=True)]


@dataclass(frozen=True)
class ShardSizes:
    """The size in bytes of the cached files of each shard that training reads, and the window of its data set."""

    sizes: np.ndarray
    window: int

    @classmethod
    def measure(cls, training_set: TrainingSet) -> "ShardSizes":
        """Return the sizes of a training set."""
        items = cached_items(training_set)
        counts = training_set.selected_counts if items else ()
        sizes = [sum(item.bytes for item in shard) for shard, count in zip(items, counts, strict=True) if count]
        return cls(np.sort(np.array(sizes, np.int64))[::-1], training_set.shuffle_window)

    def required_bytes(self, window: int | None = None) -> int:
        """Return the largest size that two consecutive windows can have: the shards are in random order.

        `window` replaces that of the configuration; 0 is all shards.
        """
        chosen = self.window if window is None else window
        return int(self.sizes[: 2 * chosen or None].sum())


def check_cache_size(training_sets: Sequence[TrainingSet]) -> None:
    """Raise UserError if two windows of shards, or all shards without windows, do not fit into the cache together."""
    for cache in find_caches(training_sets):
        users = [training_set for training_set in training_sets if cache in find_caches([training_set])]
        all_sizes = [ShardSizes.measure(training_set) for training_set in users]
        required = sum(sizes.required_bytes() for sizes in all_sizes)
        available = min(cache.max_bytes, shutil.disk_usage(cache.folder).free + cache.measure_bytes())
        if required > available:
            raise too_small_error(cache, all_sizes, required, available)


def too_small_error(cache: NodeCache, all_sizes: Sequence[ShardSizes], required: int, available: int) -> UserError:
    """Return the error for a cache that is too small, with a window that fits or the size that is needed."""
    window = largest_window(all_sizes, available)
    needed = required if window else sum(sizes.required_bytes(1) for sizes in all_sizes)
    has_windows = any(sizes.window for sizes in all_sizes)
    subject = "two windows of shards have" if has_windows else "the training data have"
    choice = f"set dataset.shuffle_window to at most {window}, or " if window else "use smaller shards, or "
    return UserError(
        f"{cache.folder}: {subject} {gigabytes_rounded_up(required)} GB, but this cache has room for "
        f"{available / GIGABYTE:.3g} GB; {choice}free space and set dataset.cache_gb to at least "
        f"{gigabytes_rounded_up(needed)}"
    )


def largest_window(all_sizes: Sequence[ShardSizes], num_bytes: int) -> int:
    """Return the largest window of which two fit; 0 if none does."""
    window = 0
    while sum(sizes.required_bytes(window + 1) for sizes in all_sizes) <= num_bytes:
        window += 1
    return window


def gigabytes_rounded_up(num_bytes: int) -> str:
    """Return a size in gigabytes with three digits, not less than the size."""
    value = num_bytes / GIGABYTE
    scale = 10.0 ** (2 - math.floor(math.log10(value))) if value else 1.0
    return f"{math.ceil(value * scale) / scale:.10g}"
