"""Downloads files to the cache of the node before a data worker needs them, in the order of the epochs.

Each training process has one such process. It downloads the shards of the window that the slowest data worker reads,
then those of the next window, and no more. All of them on a node walk through the same order and skip what another one
is downloading, so they share the work. It reports no errors: a data worker that needs a file downloads it itself, and
its error ends the training.
"""

import logging
import mmap
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, zip_longest
from multiprocessing.process import BaseProcess

import numpy as np

from featgan.data.order import EpochOrder
from featgan.data.remote.node_cache import CacheItem, NodeCache
from featgan.data.remote.plans import PlannedUse
from featgan.errors import UserError
from featgan.system.resources import count_local_processes
from featgan.system.signals import block_stop_signals, defer_stop_signals
from featgan.system.worker_processes import end_with_parent

logger = logging.getLogger(__name__)

DOWNLOADS_PER_PROCESS = 2
"""Downloads of one process at a time."""

DOWNLOADS_PER_NODE = 8
"""Downloads ahead of need on a node at a time."""

POLL_SECONDS = 0.05
"""Seconds between two looks at the progress of the data workers."""

MAX_PAUSE_SECONDS = 5.0
"""Seconds, at most, until the files are checked again: another process may have downloaded or removed some."""

RETRY_SECONDS = 1.0
"""Seconds to wait after a failed download."""

CHUNK_IMAGES = 1 << 16
"""Images whose shards are looked up at a time."""


@dataclass(frozen=True)
class CachedFile:
    """A file that is read through the cache of the node."""

    cache: NodeCache
    item: CacheItem

    @property
    def key(self) -> tuple[int, str]:
        """Equal for equal files of one cache."""
        return id(self.cache), self.item.sha256


@dataclass(frozen=True)
class Window:
    """A window of an epoch: its positions in all epochs of the data set, one after the other."""

    start: int
    end: int


@dataclass(frozen=True)
class ShardOrder:
    """The order in which training reads the shards of a data set, and their files."""

    counts: np.ndarray
    """The number of selected images in each shard, int64 [S]."""
    open_epoch: Callable[[int], EpochOrder]
    """Returns the order of an epoch."""
    list_files: Callable[[int], list[CachedFile]]
    """Returns the files of a shard that training still needs."""

    def __len__(self) -> int:
        return int(self.counts.sum())

    def window_at(self, position: int) -> Window:
        """Return the window that contains a position of all epochs."""
        epoch, epoch_position = divmod(position, len(self))
        order = self.open_epoch(epoch)
        number = order.window_of(epoch_position)
        start, end = (epoch * len(self) + int(border) for border in order.window_starts[number : number + 2])
        return Window(start, end)

    def files_between(self, start: int, end: int) -> list[CachedFile]:
        """Return the files for a range of positions of one window, in the order of their first use."""
        return [file for shard in self.shards_between(start, end) for file in self.list_files(shard)]

    def shards_between(self, start: int, end: int) -> list[int]:
        """Return the shards for a range of positions of one window, in the order of their first use."""
        epoch, epoch_start = start // len(self), start // len(self) * len(self)
        order, shard_ends = self.open_epoch(epoch), np.cumsum(self.counts)
        num_shards = len(order.shards_of(order.window_of(start - epoch_start)))
        shards: dict[int, None] = {}
        while start < end and len(shards) < num_shards:
            chunk = slice(start - epoch_start, min(end, start + CHUNK_IMAGES) - epoch_start)
            used = np.searchsorted(shard_ends, order[chunk], "right")
            shards |= dict.fromkeys(used[np.sort(np.unique(used, return_index=True)[1])].tolist())
            start += CHUNK_IMAGES
        return list(shards)

    def next_uses(self, position: int, end: int) -> dict[int, int]:
        """Return after how many images the window of each shard starts, for the shards that are used before `end`.

        This epoch and the next one are considered.
        """
        epoch, current = position // len(self), self.window_at(position)
        uses: dict[int, int] = {}
        for number in (epoch + 1, epoch):
            order = self.open_epoch(number)
            starts = number * len(self) + order.window_starts[np.arange(len(order.shards)) // order.window]
            is_ahead = (starts >= current.start) & (starts < end)
            distances = np.maximum(0, starts[is_ahead] - position)
            uses |= zip(order.shards[is_ahead].tolist(), distances.tolist(), strict=True)
        return uses


@dataclass(frozen=True)
class Download:
    """The files that are downloaded until the data workers reach a step."""

    files: list[CachedFile]
    end_step: int


@dataclass(frozen=True)
class DownloadPlan:
    """The order of the shards of each data set; they take turns, one step each, until `end_step`."""

    orders: Sequence[ShardOrder]
    batch_size: int
    end_step: int

    def position_at(self, step: int) -> int:
        """Return the position of the next batch of each data set at a step."""
        return step // len(self.orders) * self.batch_size

    @property
    def end(self) -> int:
        """The position after the last batch of a data set."""
        return -(-self.end_step // len(self.orders)) * self.batch_size

    def download_at(self, step: int) -> Download:
        """Return the files of the current and of the next window of each data set, in the order of their first use.

        They are valid until one of the data sets leaves its window.
        """
        position = self.position_at(step)
        windows = [order.window_at(position) for order in self.orders]
        current, following = [], []
        for order, window in zip(self.orders, windows, strict=True):
            current.append(order.files_between(position, min(window.end, self.end)))
            next_end = order.window_at(window.end).end
            following.append(order.files_between(window.end, min(next_end, self.end)))
        files = {file.key: file for file in chain(interleave(current), interleave(following))}
        num_batches = min(-(-window.end // self.batch_size) for window in windows)
        return Download(list(files.values()), num_batches * len(self.orders))

    def publish_uses(self, step: int, download: Download) -> None:
        """Publish when each file is used next; those of a download are kept while others can be removed."""
        pinned = {file.key for file in download.files}
        uses: dict[NodeCache, list[PlannedUse]] = {file.cache: [] for file in download.files}
        for order in self.orders:
            for shard, distance in order.next_uses(self.position_at(step), self.end).items():
                for file in order.list_files(shard):
                    use = PlannedUse(file.item.sha256, distance, file.key in pinned)
                    uses.setdefault(file.cache, []).append(use)
        for cache, cache_uses in uses.items():
            cache.publish_plan(cache_uses)


def interleave(lists: Iterable[Sequence[CachedFile]]) -> Iterator[CachedFile]:
    """Yield the first elements of all lists, then the second ones, and so on."""
    return (file for files in zip_longest(*lists) for file in files if file is not None)


class StepCounters:
    """The first step that each data worker has not completed, in memory that forked processes share."""

    def __init__(self, first_step: int, num_workers: int) -> None:
        self.first_step, self.num_workers = first_step, num_workers
        self.steps = np.frombuffer(mmap.mmap(-1, 8 * num_workers), np.int64)
        self.steps[:] = first_step

    def mark_complete(self, step: int) -> None:
        """Note that the batch of a step was computed; the workers take turns, one step each."""
        self.steps[(step - self.first_step) % self.num_workers] = step + self.num_workers

    @property
    def slowest(self) -> int:
        """The first step whose batch is not complete."""
        return int(self.steps.min())


@dataclass
class Downloader:
    """Downloads the files of a plan; it runs in a process of its own."""

    plan: DownloadPlan
    counters: StepCounters
    num_threads: int

    def run(self) -> None:
        """Download one window after the other, until all batches were computed."""
        with ThreadPoolExecutor(self.num_threads) as pool:
            while (step := self.counters.slowest) < self.plan.end_step:
                download = self.plan.download_at(step)
                for file in download.files:
                    file.cache.retry_seconds = 0.0  # a data worker that needs the file waits for the end of an attempt
                self.publish(step, download)
                self.keep_in_cache(download, pool)

    def publish(self, step: int, download: Download) -> None:
        """Publish the plan; without it, the cache chooses what to remove by the time of the last use."""
        try:
            self.plan.publish_uses(step, download)
        except (OSError, UserError) as error:
            logger.debug(f"the plan of the downloads cannot be published: {error}")

    def keep_in_cache(self, download: Download, pool: ThreadPoolExecutor) -> None:
        """Download missing files until the data workers leave a window."""
        missing, pause = download.files, POLL_SECONDS
        while self.counters.slowest < download.end_step:
            is_cached = list(pool.map(lambda file: self.fetch(file, download.end_step), missing))
            still_missing = [file for file, is_there in zip(missing, is_cached, strict=True) if not is_there]
            has_progress = len(still_missing) < len(missing)
            pause = POLL_SECONDS if has_progress and still_missing else min(2 * pause, MAX_PAUSE_SECONDS)
            missing = still_missing or download.files
            self.wait(pause, download.end_step)

    def fetch(self, file: CachedFile, end_step: int) -> bool:
        """Download a file unless the data workers have reached a step; return whether the cache contains it."""
        if file.cache.contains(file.item):
            return True
        if self.counters.slowest >= end_step:
            return False
        try:
            return file.cache.fetch_item(file.item, wait=False)
        except Exception as error:  # the data worker that needs the file reports it
            logger.debug(f"{file.item.source.redacted}: cannot be downloaded ahead of need: {error}")
            self.wait(RETRY_SECONDS, end_step)
            return False

    def wait(self, seconds: float, end_step: int) -> None:
        """Wait, at most until the data workers reach a step."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.counters.slowest < end_step:
            time.sleep(POLL_SECONDS)


class DownloadWatch:
    """Calls a function if files have arrived in caches, by any process, since the last check."""

    def __init__(self, caches: Sequence[NodeCache], on_download: Callable[[], None]) -> None:
        self.caches = caches
        self.on_download = on_download
        self.times = self.read_times()

    def read_times(self) -> list[int]:
        """Return when the content of each cache changed; 0 for a cache that was removed, which a worker reports."""
        times = []
        for node_cache in self.caches:
            try:
                times.append(node_cache.objects.stat().st_mtime_ns)
            except OSError:
                times.append(0)
        return times

    def check(self) -> None:
        """Call the function if a file has arrived."""
        times = self.read_times()
        if times != self.times:
            self.times = times
            self.on_download()


@contextmanager
def download_ahead(plan: DownloadPlan | None, counters: StepCounters) -> Iterator[None]:
    """Download the files of a plan in a process that ends with the block."""
    process = start_downloader(plan, counters) if plan else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()  # a partial file is removed by the next process that downloads
            process.join()


def start_downloader(plan: DownloadPlan, counters: StepCounters) -> BaseProcess | None:
    """Fork a process that downloads; None if there is too little memory, since training does not depend on it."""
    num_threads = max(1, min(DOWNLOADS_PER_PROCESS, DOWNLOADS_PER_NODE // count_local_processes()))
    downloader = Downloader(plan, counters, num_threads)
    process = multiprocessing.get_context("fork").Process(target=run_downloader, args=(downloader,), daemon=True)
    try:
        with block_stop_signals():
            process.start()
    except OSError as error:
        logger.warning(f"shards are not downloaded ahead of their use: {(error.strerror or str(error)).lower()}")
        return None
    return process


def run_downloader(downloader: Downloader) -> None:
    """Run a downloader in its process; a stop signal to the process group does not end it."""
    end_with_parent()
    defer_stop_signals()
    downloader.run()
