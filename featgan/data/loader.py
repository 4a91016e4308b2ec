"""Shards and conditions => batches, each a pure function of (seed, step, rank, world size).

No state is kept: the order of an epoch is f(seed, epoch), a step's global batch is a fixed stretch of it, and each
process takes its rows of that batch. So a run resumes exactly at any step, with any number of workers, and another
number of processes sees the same global batches.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from featgan.data.conditions import Condition
from featgan.data.image_cache import DecodedImages, keep_where_it_pays
from featgan.data.shards.shard_set import Split
from featgan.system.signals import outlive_signals, signals_held

ORDER, MIRROR, TARGET, PENALTY = range(4)
"""Independent random streams of one seed."""


@dataclass(frozen=True)
class Batch:
    """One process's rows of a step's batch."""

    images: Tensor  # uint8 [n, 3, H, W]
    condition: Tensor  # [n, C]
    condition_target: Tensor  # [n, C]
    outputs: Tensor  # [n, O] of the black box; O = 0 where no term needs them
    outputs_target: Tensor  # [n, O]
    alpha: Tensor  # [n] in [0, 1], where the gradient penalty is taken
    dataset: int

    def split(self, count: int) -> "list[Batch]":
        """`count` parts of equal size, in order."""
        columns = {name: value.chunk(count) for name, value in self.tensors().items()}
        rows = ({name: chunks[index] for name, chunks in columns.items()} for index in range(count))
        return [self] if count == 1 else [Batch(**row, dataset=self.dataset) for row in rows]

    @classmethod
    def join(cls, parts: "Sequence[Batch]") -> "Batch":
        """The inverse of `split`."""
        names = parts[0].tensors()
        joined = {name: torch.cat([part.tensors()[name] for part in parts]) for name in names}
        return cls(**joined, dataset=parts[0].dataset)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that has a row for each image."""
        return {name: value for name, value in vars(self).items() if name != "dataset"}

    def to(self, device: torch.device) -> "Batch":
        if device.type == "cpu":
            return self
        moved = {name: value.to(device, non_blocking=True) for name, value in self.tensors().items()}
        return Batch(**moved, dataset=self.dataset)


def stream(seed: int, kind: int, *position: int) -> np.random.Generator:
    """The random stream of one purpose at one position."""
    return np.random.default_rng(np.random.SeedSequence([seed, kind, *position]))


def choose_dataset(step: int, critic_steps: int, num_datasets: int) -> int:
    """Data sets alternate every step, in such a way that the generator's steps alternate as well."""
    shift = step // critic_steps if critic_steps % num_datasets == 0 else 0
    return (step + shift) % num_datasets


@dataclass(frozen=True)
class Source:
    """A data set's images of one split and their condition."""

    split: Split
    condition: Condition
    mirror: bool

    def __len__(self) -> int:
        return len(self.condition.rows)


class BatchStream(Dataset[Batch]):
    """`stream[step]` is the step's batch for this rank; the loader's workers each hold a copy."""

    def __init__(
        self,
        sources: Sequence[Source],
        batch_size: int,
        critic_steps: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        assert batch_size % world_size == 0
        self.sources = sources
        self.batch_size = batch_size
        self.critic_steps = critic_steps
        self.seed = seed
        self.local = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self.orders: dict[tuple[int, int], np.ndarray] = {}
        self.images: list[Split | DecodedImages] = [source.split for source in sources]

    def keep_decoded(self, num_steps: int) -> None:
        """Keep images in memory where a training of so many steps gains by it; before its workers are started."""
        num_images = num_steps * self.batch_size // len(self.sources)
        self.images = [keep_where_it_pays(source.split, num_images) for source in self.sources]

    def __getitem__(self, step: int) -> Batch:
        dataset = choose_dataset(step, self.critic_steps, len(self.sources))
        source = self.sources[dataset]
        rows, mirrored = self.global_rows(dataset, step // len(self.sources) if len(self.sources) > 1 else step)
        condition = source.condition.values(rows, mirrored)
        outputs = (
            source.condition.outputs(rows, mirrored)
            if source.condition.outputs
            else np.zeros((len(rows), 0), np.float32)
        )
        order = stream(self.seed, TARGET, step).permutation(len(rows))  # each is asked for another image's condition
        alpha = stream(self.seed, PENALTY, step).random(len(rows), dtype=np.float32)
        return Batch(
            self.images[dataset].decode(rows[self.local], mirrored[self.local]),
            torch.from_numpy(condition[self.local]),
            torch.from_numpy(condition[order][self.local]),
            torch.from_numpy(outputs[self.local]),
            torch.from_numpy(outputs[order][self.local]),
            torch.from_numpy(alpha[self.local]),
            dataset,
        )

    def global_rows(self, dataset: int, turn: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the data set's `turn`-th global batch, and which are mirrored; an epoch shows each row once."""
        source = self.sources[dataset]
        first = turn * self.batch_size
        parts = []
        while first < (turn + 1) * self.batch_size:
            epoch, place = divmod(first, len(source))
            part = self.order(dataset, epoch)[place : place + (turn + 1) * self.batch_size - first]
            parts.append(source.condition.rows[part])
            first += len(part)
        rows = np.concatenate(parts)
        mirrored = stream(self.seed, MIRROR, dataset, turn).random(len(rows)) < 0.5
        return rows, mirrored & source.mirror

    def order(self, dataset: int, epoch: int) -> np.ndarray:
        """The epoch's permutation; the two newest are kept, since a batch can span two epochs."""
        key = (dataset, epoch)
        if key not in self.orders:
            self.orders = {known: order for known, order in self.orders.items() if known[1] >= epoch - 1}
            self.orders[key] = stream(self.seed, ORDER, dataset, epoch).permutation(len(self.sources[dataset]))
        return self.orders[key]


@contextmanager
def open_loader(batches: BatchStream, first_step: int, last_step: int, num_workers: int) -> Iterator[Iterator[Batch]]:
    """Batches of steps first_step .. last_step - 1, in order; the workers end with the block, whatever ends it."""
    batches.keep_decoded(last_step - first_step)
    loader: DataLoader[Batch] = DataLoader(
        batches,
        batch_size=None,
        sampler=range(first_step, last_step),  # type: ignore[arg-type]
        num_workers=num_workers,
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=prepare_worker,
    )
    with signals_held():
        iterator = iter(loader)
    try:
        yield iterator
    finally:
        if num_workers:
            iterator._shutdown_workers()  # type: ignore[attr-defined]


def prepare_worker(worker: int) -> None:
    """Workers leave the cores to the networks; a signal to the whole group must not cut a step short."""
    torch.set_num_threads(1)
    outlive_signals()
