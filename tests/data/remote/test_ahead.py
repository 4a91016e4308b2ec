"""Downloads ahead of need: what is planned, and how often each shard is requested from a server."""

import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from featgan.config.loading import parse_config
from featgan.data.conditions import build_condition
from featgan.data.loader import Batch, BatchDataset, TrainingSet, load_batch, open_loader
from featgan.data.order import EpochOrder
from featgan.data.remote.access import DataAccess, open_node_cache
from featgan.data.remote.ahead import CachedFile, DownloadPlan, ShardOrder, StepCounters
from featgan.data.remote.node_cache import CacheItem, NodeCache
from featgan.data.remote.plans import read_plan
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from tests.data.remote.files import FakeServer
from tests.helpers.many_shards import largest_shard_bytes, pack_many_shards
from tests.helpers.servers import FaultyServer, serve_folder, wait_seconds

BATCH_SIZE, WINDOW, EPOCH_STEPS = 4, 6, 36
"""144 images in 36 shards: six windows of six steps."""

STEPS_AHEAD = 4
"""Batches that a worker computes before the first of them is used."""

DEADLINE_SECONDS = 60.0


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return pack_many_shards(tmp_path_factory.mktemp("many-shards"))


@pytest.fixture
def server(shards: ShardSet) -> Iterator[FaultyServer]:
    with serve_folder(shards.path) as server:
        yield server
    open_node_cache.cache_clear()


def open_batches(
    shards: ShardSet, window: int = WINDOW, rank: int = 0, world_size: int = 1, condition: str = "features"
) -> BatchDataset:
    tree = {"shards": "unused", "feature_cache": "linear", "condition": {"kind": condition}}
    dataset = parse_config({"dataset": tree}, "test").dataset
    training_set = TrainingSet(
        shards.get_split("train"), build_condition(dataset, shards, "train"), True, shuffle_window=window
    )
    return BatchDataset([training_set], BATCH_SIZE, 1, 0, rank, world_size)


def open_remote(
    server: FaultyServer, folder: Path, num_windows: float, window: int = WINDOW, rank: int = 0, world_size: int = 1
) -> BatchDataset:
    """Open the data behind a URL as one of several processes, with a cache that has room for some windows."""
    num_bytes = num_windows * WINDOW * largest_shard_bytes(ShardSet.open(server.folder))
    open_node_cache.cache_clear()  # each process is a user of the cache
    access = DataAccess(folder / "cache", num_bytes / 1e9, retry_seconds=60.0)
    return open_batches(ShardSet.open(server.url, access), window, rank, world_size)


def count_requests(server: FaultyServer) -> Counter[str]:
    """Return how often each shard and each file of its features was requested."""
    return Counter(path for path in server.requests if "train-" in path and "index" not in path)


def assert_equal_batches(found: Batch, expected: Batch) -> None:
    for name, tensor in expected.named_tensors().items():
        assert torch.equal(found.named_tensors()[name], tensor), name


def wait_for_download(batches: BatchDataset, step: int, end_step: int) -> None:
    """Wait until the files are cached that are downloaded while a step is computed."""
    plan = batches.plan_downloads(end_step)
    assert plan is not None
    deadline = time.monotonic() + DEADLINE_SECONDS
    files = plan.download_at(min(step, end_step - 1)).files
    while not all(file.cache.contains(file.item) for file in files):
        assert time.monotonic() < deadline, "the files were not downloaded ahead of need"
        time.sleep(0.01)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_each_shard_is_downloaded_once_per_epoch(
    shards: ShardSet, server: FaultyServer, tmp_path: Path, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featgan.data.image_cache.MAX_MEMORY_SHARE", 0)
    num_epochs = 2
    end_step = num_epochs * EPOCH_STEPS
    ranks = [open_remote(server, tmp_path, 2.5, WINDOW, rank, world_size) for rank in range(world_size)]
    local = open_batches(shards)
    with ExitStack() as stack:
        loaders = [stack.enter_context(open_loader(batches, 0, end_step, 1)) for batches in ranks]
        for step in range(end_step):
            for batches in ranks:
                wait_for_download(batches, step + STEPS_AHEAD, end_step)
            if step == EPOCH_STEPS - 2 * WINDOW:
                assert set(count_requests(server).values()) == {1}
            assert_equal_batches(Batch.concatenate([next(loader) for loader in loaders]), local[step])
    requests = count_requests(server)
    assert len(requests) == 2 * 36 and max(requests.values()) <= num_epochs
    # The cache is smaller than the data, but the newest windows of an epoch can be used in the next one.
    assert sum(requests.values()) > 2 * 36


@pytest.mark.parametrize(("window", "num_workers"), [(0, 1), (WINDOW, 2), (WINDOW, 0)])
def test_nothing_is_downloaded_twice_if_the_cache_is_large_enough(
    shards: ShardSet, server: FaultyServer, tmp_path: Path, window: int, num_workers: int
) -> None:
    batches, local = open_remote(server, tmp_path, 6, window), open_batches(shards, window)
    end_step = 3 * EPOCH_STEPS
    with open_loader(batches, 0, end_step, num_workers) as loader:
        for step, batch in enumerate(loader):
            assert_equal_batches(batch, local[step])
    requests = count_requests(server)
    assert len(requests) == 2 * 36 and set(requests.values()) == {1}


def test_resumed_training_continues_after_a_worker_was_killed(
    shards: ShardSet, server: FaultyServer, tmp_path: Path
) -> None:
    batches, local, end_step = open_remote(server, tmp_path, 3.5), open_batches(shards), EPOCH_STEPS
    with open_loader(batches, 0, end_step, 2) as loader:
        wait_for_download(batches, 0, end_step)
        assert_equal_batches(next(loader), local[0])
        workers = multiprocessing.active_children()
        assert len(workers) == 3
        max(workers, key=lambda process: process.pid or 0).kill()
        with pytest.raises(UserError, match=r"data worker 2 of 2 .* was killed by SIGKILL"):
            for _ in range(2 * STEPS_AHEAD + 2):
                next(loader)
    assert not multiprocessing.active_children()
    with open_loader(batches, 1, end_step, 1) as loader:
        for step in range(1, end_step):
            wait_for_download(batches, step + STEPS_AHEAD, end_step)
            assert_equal_batches(next(loader), local[step])
    requests = count_requests(server)
    num_interrupted = 3  # one of the worker, and two of the process that downloads ahead of need
    assert len(requests) == 2 * 36 and sum(requests.values()) <= 2 * 36 + num_interrupted


def test_training_continues_after_an_outage(
    shards: ShardSet, server: FaultyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    batches, local = open_remote(server, tmp_path, 3), open_batches(shards)
    server.shutdown()
    server.server_close()
    restarted = threading.Event()

    def restart() -> None:
        time.sleep(2.0)
        with serve_folder(shards.path, server.server_port):
            restarted.wait(DEADLINE_SECONDS)

    thread = threading.Thread(target=restart)
    try:
        with open_loader(batches, 0, EPOCH_STEPS, 1) as loader:
            thread.start()
            start = time.monotonic()
            assert_equal_batches(next(loader), local[0])
            assert time.monotonic() - start > 1.0
            for step, batch in enumerate(loader, 1):
                assert_equal_batches(batch, local[step])
    finally:
        restarted.set()
        thread.join()


def test_arriving_files_are_reported_while_a_batch_is_awaited(
    shards: ShardSet, server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featgan.data.batch_workers.POLL_SECONDS", 0.01)
    for name in shards.get_split("train").shard_names:
        server.fail(f"/{name}.tar", wait_seconds(0.2))
    reported: list[float] = []
    batches = open_remote(server, tmp_path, 3)
    with open_loader(batches, 0, EPOCH_STEPS, 1, lambda: reported.append(time.monotonic())) as loader:
        next(loader)
    assert reported
    reported.clear()
    load_batch(batches, EPOCH_STEPS - 1, 1, lambda: reported.append(time.monotonic()))
    assert reported
    local_reports: list[float] = []
    with open_loader(open_batches(shards), 0, 2, 1, lambda: local_reports.append(0.0)) as loader:
        next(loader)
    assert not local_reports


def test_error_of_a_download_is_that_of_the_worker(server: FaultyServer, tmp_path: Path) -> None:
    batches = open_remote(server, tmp_path, 3)
    server.folder = tmp_path  # every file is missing from now on
    message = (
        r"^http://127.0.0.1:\d+/features/linear/train-\d+\.features\.npy: no such file on the server; check the URL"
    )
    with open_loader(batches, 0, EPOCH_STEPS, 1) as loader, pytest.raises(UserError, match=message):
        next(loader)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_removed_files_do_not_stay_open(server: FaultyServer, tmp_path: Path, num_workers: int) -> None:
    batches = open_remote(server, tmp_path, 2.5)
    with open_loader(batches, 0, EPOCH_STEPS, num_workers) as loader:
        (process,) = {os.getpid()} if not num_workers else find_workers()
        for step in range(EPOCH_STEPS - 2 * STEPS_AHEAD):  # a worker that has computed all batches ends
            wait_for_download(batches, step + (STEPS_AHEAD if num_workers else 0), EPOCH_STEPS)
            next(loader)
            open_files = list_open_files(process, tmp_path / "cache" / "objects")
            assert len(open_files) <= 2 * 2 * WINDOW
            # Those of a complete window are open until the next batch is read.
            assert num_workers or (step + 1) % WINDOW == 0 or not [link for link in open_files if "deleted" in link]


def list_open_files(process: int, folder: Path) -> list[str]:
    """Return the files in a folder that a process has open, with a mark at those that were removed."""
    links = []
    for path in Path(f"/proc/{process}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            links.append(str(path.readlink()))
    return [link for link in links if str(folder) in link]


def find_workers() -> list[int]:
    """Return the process number of the data worker, which starts after the process that downloads."""
    return [max(process.pid or 0 for process in multiprocessing.active_children())]


def test_sample_batch_leaves_no_file_open(server: FaultyServer, tmp_path: Path) -> None:
    batches = open_remote(server, tmp_path, 2.5)
    batch = load_batch(batches, 0, num_workers=1)
    assert_equal_batches(batch, load_batch(batches, 0, num_workers=0))
    assert open_node_cache.cache_info().currsize == 1
    fresh = open_remote(server, tmp_path, 2.5)
    load_batch(fresh, 0, num_workers=1)
    assert not fresh.training_sets[0].split.reader.files and not fresh.training_sets[0].arrays[0].maps


def test_local_data_need_no_download(shards: ShardSet) -> None:
    batches = open_batches(shards)
    assert batches.plan_downloads(10) is None
    with open_loader(batches, 0, 10, 1) as loader:
        assert len(multiprocessing.active_children()) == 1
        next(loader)


def test_images_in_memory_are_not_downloaded_again(server: FaultyServer, tmp_path: Path) -> None:
    batches = open_remote(server, tmp_path, 2.5)
    batches.cache_decoded_images(2 * EPOCH_STEPS)
    for step in range(EPOCH_STEPS - 1):
        batches[step]
    plan = batches.plan_downloads(2 * EPOCH_STEPS)
    assert plan is not None
    files = [file.item.source.redacted for file in plan.download_at(EPOCH_STEPS).files]
    last_shards = set(batches.training_sets[0].split.shard_of(batches.global_rows(0, EPOCH_STEPS - 1)[0]).tolist())
    assert len([name for name in files if name.endswith(".npy")]) == 2 * WINDOW
    assert len([name for name in files if name.endswith(".tar")]) <= len(last_shards)


def make_plan(tmp_path: Path, counts: list[list[int]], window: int, batch_size: int, end_step: int) -> DownloadPlan:
    """Return a plan for data sets with these numbers of images in their shards, one small file for each shard."""
    fake = FakeServer(tmp_path / "server")
    node_cache = NodeCache(tmp_path / "cache", fake.fetch, 1 << 20)
    orders = []
    for dataset, shard_counts in enumerate(counts):
        items = [
            CacheItem(f"{dataset:032x}{shard:032x}", 1, fake.add("file", b"x").source)
            for shard in range(len(shard_counts))
        ]

        @cache
        def open_epoch(epoch: int, dataset: int = dataset, shard_counts: list[int] = shard_counts) -> EpochOrder:
            return EpochOrder(7, dataset, epoch, shard_counts, window)

        def list_files(shard: int, items: list[CacheItem] = items) -> list[CachedFile]:
            return [CachedFile(node_cache, items[shard])]

        orders.append(ShardOrder(np.array(shard_counts), open_epoch, list_files))
    return DownloadPlan(orders, batch_size, end_step)


def used_shards(order: ShardOrder, start: int, end: int) -> list[int]:
    """Return the shard of each position."""
    ends = np.cumsum(order.counts)
    indices = [order.open_epoch(position // len(order))[position % len(order) :][:1] for position in range(start, end)]
    return [int(np.searchsorted(ends, index[0], "right")) for index in indices]


@pytest.mark.parametrize("window", [0, 1, 2, 5])
@pytest.mark.parametrize("counts", [[[3, 0, 4, 1, 5]], [[2, 2, 2], [1, 6, 0, 3]]])
def test_plan_contains_the_shards_of_two_windows(tmp_path: Path, counts: list[list[int]], window: int) -> None:
    end_step = 40
    plan = make_plan(tmp_path, counts, window, 2, end_step)
    for step in range(end_step):
        position, download = plan.position_at(step), plan.download_at(step)
        expected = set()
        for dataset, order in enumerate(plan.orders):
            current = order.window_at(position)
            following = order.window_at(current.end)
            assert current.start <= position < current.end == following.start
            shards = used_shards(order, position, min(following.end, plan.end))
            expected |= {f"{dataset:032x}{shard:032x}" for shard in shards}
            first = [
                int(file.item.sha256, 16) for file in download.files if file.item.sha256.startswith(f"{dataset:032x}")
            ]
            assert first[0] % 2**128 == shards[0]
        assert {file.item.sha256 for file in download.files} == expected
        assert step < download.end_step
        assert plan.download_at(download.end_step - 1).end_step == download.end_step


def test_plan_is_published_with_the_next_use_of_each_shard(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, [[3, 0, 4, 1, 5, 2]], 2, 2, 40)
    (order,) = plan.orders
    for step in range(20):
        download, position = plan.download_at(step), plan.position_at(step)
        plan.publish_uses(step, download)
        node_cache = download.files[0].cache
        uses = {use.sha256: use for use in read_plan(node_cache.plan_path(node_cache.user))}
        assert len(uses) == 5
        window = order.window_at(position)
        for shard in (0, 2, 3, 4, 5):
            use = uses[f"{0:032x}{shard:032x}"]
            starts = [window.start]
            while shard not in used_shards(order, starts[-1], order.window_at(starts[-1]).end):
                starts.append(order.window_at(starts[-1]).end)
            assert use.next_use == max(0, starts[-1] - position)
            assert not use.is_pinned or len(starts) <= 2


def test_slowest_worker_determines_the_position() -> None:
    counters = StepCounters(first_step=5, num_workers=3)
    for step, slowest in [(5, 5), (7, 5), (6, 8), (9, 8), (10, 8), (8, 11)]:
        counters.mark_complete(step)
        assert counters.slowest == slowest or step in (5, 7)
