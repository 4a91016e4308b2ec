"""The data loader: each batch is a pure function of (seed, step, rank, world size).

The loader keeps no state. The order of an epoch is f(seed, epoch), see `order.py`, and the global batch of a step is a
fixed range of that order. Each process takes its rows of the global batch. A run therefore resumes exactly at any step
with any number of workers, and the global batches do not depend on the number of processes.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from featgan.data.batch_workers import compute_ahead
from featgan.data.conditions import Condition
from featgan.data.feature_cache.storage import ShardArrays
from featgan.data.image_cache import DecodedImageCache, cache_if_it_fits
from featgan.data.order import FLIP_STREAM, PENALTY_STREAM, TARGET_STREAM, EpochOrder, random_stream
from featgan.data.remote.ahead import CachedFile, DownloadPlan, DownloadWatch, ShardOrder, StepCounters, download_ahead
from featgan.data.remote.node_cache import NodeCache
from featgan.data.remote.shard_files import CachedFiles, ShardFiles
from featgan.data.shards.split import Split


@dataclass(frozen=True)
class Batch:
    """The rows of one step's batch that belong to one process."""

    images: Tensor  # uint8 [n, 3, H, W]
    condition: Tensor  # [n, C]
    condition_target: Tensor  # [n, C]
    outputs: Tensor  # [n, O] of the black box; O = 0 if no loss term uses them
    outputs_target: Tensor  # [n, O]
    alpha: Tensor  # [n] in [0, 1], interpolation weight of the gradient penalty
    dataset: int

    def split_equally(self, count: int) -> "list[Batch]":
        """Split the batch into `count` microbatches of equal size, in order."""
        columns = {name: value.chunk(count) for name, value in self.named_tensors().items()}
        rows = ({name: chunks[index] for name, chunks in columns.items()} for index in range(count))
        return [self] if count == 1 else [Batch(**row, dataset=self.dataset) for row in rows]

    @classmethod
    def concatenate(cls, batches: "Sequence[Batch]") -> "Batch":
        """Concatenate batches in order; the inverse of `split_equally`."""
        names = batches[0].named_tensors()
        joined = {name: torch.cat([batch.named_tensors()[name] for batch in batches]) for name in names}
        return cls(**joined, dataset=batches[0].dataset)

    def named_tensors(self) -> dict[str, Tensor]:
        """Return all tensors, which have one row per image, by name."""
        return {name: value for name, value in vars(self).items() if name != "dataset"}

    def to(self, device: torch.device) -> "Batch":
        """Copy all tensors to `device`; returns the batch itself if that is the CPU."""
        if device.type == "cpu":
            return self
        moved = {name: value.to(device, non_blocking=True) for name, value in self.named_tensors().items()}
        return Batch(**moved, dataset=self.dataset)


def dataset_for_step(step: int, n_critic: int, num_datasets: int) -> int:
    """Return the data set index of a step: data sets alternate every step, and so do those of the generator's steps."""
    shift = step // n_critic if n_critic % num_datasets == 0 else 0
    return (step + shift) % num_datasets


@dataclass(frozen=True)
class TrainingSet:
    """The images of one split of a data set, and their condition; 0 is the window of the whole epoch."""

    split: Split
    condition: Condition
    horizontal_flip: bool
    shuffle_window: int = 0

    def __len__(self) -> int:
        return len(self.condition.rows)

    @cached_property
    def selected_counts(self) -> np.ndarray:
        """The number of images in each shard whose condition is known, int64 [S]."""
        return self.condition.rows.counts_per_shard(self.shard_starts)

    @cached_property
    def shard_starts(self) -> np.ndarray:
        """The first row of each shard, and the number of rows, int64 [S + 1]."""
        return np.concatenate([[0], np.cumsum(self.split.shard_counts, dtype=np.int64)])

    @cached_property
    def arrays(self) -> list[ShardArrays]:
        """The features and outputs that the condition uses."""
        cache, kinds = self.condition.cache, ["features", *(["outputs"] if self.condition.outputs else [])]
        return [cache.arrays[self.split.name, kind] for kind in kinds] if cache is not None else []

    @property
    def shard_files(self) -> list[ShardFiles]:
        """The tar files, and the features and outputs that the condition uses."""
        return [self.split.reader.shard_files, *(arrays.shard_files for arrays in self.arrays)]

    def retain(self, shards: Collection[int]) -> None:
        """Close the files of all other shards that are in the cache of the node, so that it can remove them."""
        self.split.reader.retain(shards)
        for arrays in self.arrays:
            arrays.retain(shards)


def find_caches(training_sets: Sequence[TrainingSet]) -> list[NodeCache]:
    """Return the caches through which the training sets are read; empty if all files are on a disk."""
    files = [files for training_set in training_sets for files in training_set.shard_files]
    return list({column.cache: None for column in files if isinstance(column, CachedFiles)})


class BatchDataset:
    """A map-style data set: `batches[step]` is the batch of that step for this rank; each loader worker has a copy."""

    def __init__(
        self,
        training_sets: Sequence[TrainingSet],
        batch_size: int,
        n_critic: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        assert batch_size % world_size == 0
        self.training_sets = training_sets
        self.batch_size = batch_size
        self.n_critic = n_critic
        self.seed = seed
        self.local_slice = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self.epoch_orders: dict[tuple[int, int], EpochOrder] = {}
        self.windows: dict[int, tuple[int, int]] = {}
        """The epoch and the window of the previous batch of each data set."""
        self.images: list[Split | DecodedImageCache] = [training_set.split for training_set in training_sets]

    def cache_decoded_images(self, num_steps: int) -> None:
        """Cache decoded images in memory if training for `num_steps` benefits; call this before the workers start."""
        num_images = num_steps * self.batch_size // len(self.training_sets)
        self.images = [cache_if_it_fits(training_set.split, num_images) for training_set in self.training_sets]

    def __getitem__(self, step: int) -> Batch:
        dataset = dataset_for_step(step, self.n_critic, len(self.training_sets))
        training_set = self.training_sets[dataset]
        self.close_previous_window(dataset, self.batch_index(step))
        rows, flipped = self.global_rows(dataset, self.batch_index(step))
        condition = training_set.condition.values(rows, flipped)
        outputs = (
            training_set.condition.outputs(rows, flipped)
            if training_set.condition.outputs
            else np.zeros((len(rows), 0), np.float32)
        )
        # The target of each image is the condition of another image in the batch.
        order = random_stream(self.seed, TARGET_STREAM, step).permutation(len(rows))
        alpha = random_stream(self.seed, PENALTY_STREAM, step).random(len(rows), dtype=np.float32)
        return Batch(
            self.images[dataset].decode(rows[self.local_slice], flipped[self.local_slice]),
            torch.from_numpy(condition[self.local_slice]),
            torch.from_numpy(condition[order][self.local_slice]),
            torch.from_numpy(outputs[self.local_slice]),
            torch.from_numpy(outputs[order][self.local_slice]),
            torch.from_numpy(alpha[self.local_slice]),
            dataset,
        )

    def batch_index(self, step: int) -> int:
        """Return the number of batches of its data set before a step: each takes its turn in as many steps."""
        return step // len(self.training_sets)

    def max_batch_bytes(self) -> int:
        """Return the size in bytes of the tensors of the largest batch of this process."""
        num_rows = self.local_slice.stop - self.local_slice.start
        return num_rows * max(map(bytes_per_image, self.training_sets))

    def global_rows(self, dataset: int, batch_index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows [B] of a data set's global batch and which of them are flipped [B].

        An epoch contains every row once; a batch can span two epochs.
        """
        training_set = self.training_sets[dataset]
        position = batch_index * self.batch_size
        index_chunks = []
        while position < (batch_index + 1) * self.batch_size:
            epoch, start = divmod(position, len(training_set))
            indices = self.epoch_order(dataset, epoch)[start : start + (batch_index + 1) * self.batch_size - position]
            index_chunks.append(indices)
            position += len(indices)
        rows = training_set.condition.rows[np.concatenate(index_chunks)]
        flipped = random_stream(self.seed, FLIP_STREAM, dataset, batch_index).random(len(rows)) < 0.5
        return rows, flipped & training_set.horizontal_flip

    def close_previous_window(self, dataset: int, batch_index: int) -> None:
        """Close the files of the previous windows if a batch is the first one that starts in another window."""
        training_set, position = self.training_sets[dataset], batch_index * self.batch_size
        windows = []
        for used_position in (position, position + self.batch_size - 1):
            epoch, start = divmod(used_position, len(training_set))
            windows.append((epoch, self.epoch_order(dataset, epoch).window_of(start)))
        if self.windows.get(dataset) != windows[0]:
            self.windows[dataset] = windows[0]
            shards = [self.epoch_order(dataset, epoch).shards_of(window) for epoch, window in windows]
            training_set.retain(set(np.concatenate(shards).tolist()))

    def plan_downloads(self, end_step: int) -> DownloadPlan | None:
        """Return what is downloaded ahead of the steps before `end_step`; None if all files are on a disk."""
        if not find_caches(self.training_sets):
            return None
        orders = [
            ShardOrder(
                training_set.selected_counts, partial(self.epoch_order, dataset), partial(self.list_files, dataset)
            )
            for dataset, training_set in enumerate(self.training_sets)
        ]
        return DownloadPlan(orders, self.batch_size, end_step)

    def list_files(self, dataset: int, shard: int) -> list[CachedFile]:
        """Return the files of a shard in the cache of the node; not the images if all were decoded before."""
        training_set, images = self.training_sets[dataset], self.images[dataset]
        files = training_set.shard_files
        if isinstance(images, DecodedImageCache):
            rows = slice(*training_set.shard_starts[shard : shard + 2])
            if images.count_decoded(rows) >= training_set.selected_counts[shard]:
                files = files[1:]
        return [
            CachedFile(column.cache, column.cache_items[shard]) for column in files if isinstance(column, CachedFiles)
        ]

    def epoch_order(self, dataset: int, epoch: int) -> EpochOrder:
        """Return the order of an epoch; the two newest are cached, because a batch can span two epochs."""
        key = (dataset, epoch)
        if key not in self.epoch_orders:
            self.epoch_orders = {
                known_key: order for known_key, order in self.epoch_orders.items() if known_key[1] >= epoch - 1
            }
            training_set = self.training_sets[dataset]
            self.epoch_orders[key] = EpochOrder(
                self.seed, dataset, epoch, training_set.selected_counts, training_set.shuffle_window
            )
        return self.epoch_orders[key]


def bytes_per_image(training_set: TrainingSet) -> int:
    """Return the size in bytes of one row of the tensors of a batch."""
    condition = training_set.condition
    num_outputs = condition.output_dim if condition.outputs else 0
    num_floats = 2 * condition.dim + 2 * num_outputs + 1  # of the image and of its target, and alpha
    return 3 * training_set.split.image_size**2 + num_floats * np.dtype(np.float32).itemsize


@contextmanager
def open_loader(
    batches: BatchDataset,
    first_step: int,
    end_step: int,
    num_workers: int,
    on_download: Callable[[], None] = lambda: None,
) -> Iterator[Iterator[Batch]]:
    """Iterate over the batches of the steps from `first_step` to `end_step`, exclusive; workers stop with the block.

    Files that are not on this node are downloaded ahead of their use. While a batch of a worker is awaited,
    `on_download` is called after a file has arrived, so that slow downloads are not taken for a hang.
    """
    batches.cache_decoded_images(end_step - first_step)
    steps = range(first_step, end_step)
    counters = StepCounters(first_step, max(1, num_workers))

    def compute_batch(step: int) -> Batch:
        batch = batches[step]
        counters.mark_complete(step)
        return batch

    with download_ahead(batches.plan_downloads(end_step), counters):
        if not num_workers:
            yield map(compute_batch, steps)
            return
        on_wait = DownloadWatch(find_caches(batches.training_sets), on_download).check
        with compute_in_workers(compute_batch, steps, num_workers, batches.max_batch_bytes(), on_wait) as loader:
            yield loader


@contextmanager
def compute_in_workers(
    compute_batch: Callable[[int], Batch],
    steps: range,
    num_workers: int,
    num_bytes: int,
    on_wait: Callable[[], None] | None = None,
) -> Iterator[Iterator[Batch]]:
    """Iterate over the batches of the steps, computed in worker processes; they end with the block."""

    def compute_columns(step: int) -> tuple[dict[str, Tensor], int]:
        batch = compute_batch(step)
        return batch.named_tensors(), batch.dataset

    with compute_ahead(compute_columns, steps, num_workers, num_bytes, on_wait) as loader:
        yield (Batch(**columns, dataset=dataset) for columns, dataset in loader)


def load_batch(
    batches: BatchDataset, step: int, num_workers: int, on_download: Callable[[], None] = lambda: None
) -> Batch:
    """Return the batch of one step; `on_download` is that of `open_loader`.

    If its files are in the cache of the node, a worker opens them, so that this process does not keep them open.
    """
    if not num_workers or not find_caches(batches.training_sets):
        return batches[step]
    steps, on_wait = range(step, step + 1), DownloadWatch(find_caches(batches.training_sets), on_download).check
    with compute_in_workers(batches.__getitem__, steps, 1, batches.max_batch_bytes(), on_wait) as loader:
        return next(loader)
