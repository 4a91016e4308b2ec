"""The node cache: one download per node, checked content, bounded size, removal of what is needed last."""

import multiprocessing
import os
import pickle
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import BinaryIO

import pytest

from featgan.data.remote.cache_folder import default_cache_folder, warn_about_network_folder
from featgan.data.remote.node_cache import CacheItem, NodeCache
from featgan.data.remote.plans import PlannedUse
from featgan.errors import UserError
from tests.data.remote.files import FakeServer, Fetched, StoredFile, cached_bytes, read_all
from tests.helpers.mounts import read_only, run_with_mounts

fork = multiprocessing.get_context("fork")

TIMEOUT = 60.0
"""Seconds after which a process of these tests counts as hanging."""


@pytest.fixture
def server(tmp_path: Path) -> FakeServer:
    return FakeServer(tmp_path / "server")


@pytest.fixture
def cache(tmp_path: Path, server: FakeServer) -> NodeCache:
    return NodeCache(tmp_path / "cache", server.fetch, 10_000)


def test_network_file_system_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mounts = tmp_path / "mounts"
    (tmp_path / "a disk" / "cache").mkdir(parents=True)
    escaped = str(tmp_path / "a disk").replace(" ", r"\040")
    lines = ["/dev/sda / ext4 rw 0 0", f"/dev/sdb {escaped} ext4 rw 0 0", f"server:/x {escaped} nfs4 rw 0 0", "damaged"]
    mounts.write_text("\n".join(lines))
    warn_about_network_folder(tmp_path / "other", mounts)
    warn_about_network_folder(tmp_path / "a disk", tmp_path / "none")
    assert not caplog.messages
    warn_about_network_folder(tmp_path / "a disk" / "cache", mounts)
    assert caplog.messages == [
        f"{tmp_path / 'a disk' / 'cache'}: is on a network file system (nfs4); "
        "set dataset.cache_dir to a folder on a local disk"
    ]


def run_processes(targets: Sequence[Callable[[], None]]) -> list[int | None]:
    """Run functions in forked processes and return their exit codes."""
    processes = [fork.Process(target=target) for target in targets]
    for process in processes:
        process.start()
    for process in processes:
        process.join(TIMEOUT)
    return [process.exitcode for process in processes]


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds; fails if it takes too long."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.01)


def test_file_is_downloaded_once_and_read_from_the_cache(cache: NodeCache, server: FakeServer) -> None:
    item = server.add("a.tar", b"content of the shard")
    assert [read_all(cache.open(item)) for _ in range(3)] == [b"content of the shard"] * 3
    assert server.downloads() == ["a.tar"]
    assert (cache.objects / item.sha256).read_bytes() == b"content of the shard"
    assert list(cache.partials.iterdir()) == []


def test_empty_file_can_be_cached(cache: NodeCache, server: FakeServer) -> None:
    assert read_all(cache.open(server.add("empty", b""))) == b""


def test_equal_files_are_stored_once(cache: NodeCache, server: FakeServer) -> None:
    first, second = server.add("a", b"same"), server.add("b", b"same")
    assert cache.fetch_item(first)
    assert cache.fetch_item(second)
    assert server.downloads() == ["a"]


def test_processes_share_one_download_of_each_file(tmp_path: Path, server: FakeServer) -> None:
    items = server.add_many(6, 1000)

    def read_in_random_order(seed: int) -> None:
        cache = NodeCache(tmp_path / "cache", slow_fetch(server), 10_000)
        for item in random.Random(seed).sample(items, len(items)):
            assert read_all(cache.open(item)) == item.source.path.read_bytes()  # type: ignore[attr-defined]

    assert run_processes([lambda seed=seed: read_in_random_order(seed) for seed in range(4)]) == [0] * 4  # type: ignore[misc]
    assert sorted(server.downloads()) == [f"file-{index}" for index in range(6)]


def slow_fetch(server: FakeServer) -> Callable[[StoredFile, BinaryIO, int, float], Fetched]:
    """Return a fetch function that takes long enough for other processes to want the same file."""

    def fetch(source: StoredFile, target: BinaryIO, max_bytes: int, retry_seconds: float) -> Fetched:
        time.sleep(0.02)
        return server.fetch(source, target, max_bytes, retry_seconds)

    return fetch


def start_hanging_download(folder: Path, item: CacheItem, prefix: bytes) -> BaseProcess:
    """Start a process that writes the first bytes of a file to the cache and then hangs."""

    def hang(source: StoredFile, target: BinaryIO, max_bytes: int, retry_seconds: float) -> Fetched:
        target.write(prefix)
        target.flush()
        (folder.parent / "started").touch()
        time.sleep(10 * TIMEOUT)
        raise AssertionError

    process = fork.Process(target=lambda: NodeCache(folder, hang, 10_000).fetch_item(item))
    process.start()
    wait_until((folder.parent / "started").exists)
    return process


def test_killed_download_is_repeated_by_the_next_process(tmp_path: Path, server: FakeServer) -> None:
    item, other = server.add("a", b"a" * 6000), server.add("b", b"b" * 6000)
    process = start_hanging_download(tmp_path / "cache", item, b"a" * 100)
    cache = NodeCache(tmp_path / "cache", server.fetch, 10_000)
    assert cached_bytes(cache.folder) == 6000  # the space of the whole file is reserved
    assert not cache.fetch_item(item, wait=False)  # another process downloads it
    assert not cache.fetch_item(other, wait=False)  # there is no room
    process.kill()
    process.join()
    assert len(list(cache.partials.iterdir())) == 1
    assert cache.fetch_item(other, wait=False)  # the partial file of the killed process is removed
    assert list(cache.partials.iterdir()) == []
    assert read_all(cache.open(item)) == b"a" * 6000
    assert server.downloads() == ["b", "a"]


def test_flipped_bit_is_noticed_when_a_file_arrives(cache: NodeCache, server: FakeServer) -> None:
    item = server.add("a", b"content")
    answers = [b"cOntent", b"content"]

    def fetch(source: StoredFile, target: BinaryIO, max_bytes: int, retry_seconds: float) -> Fetched:
        source.path.write_bytes(answers.pop(0))
        return server.fetch(source, target, max_bytes, retry_seconds)

    cache.fetch = fetch
    assert read_all(cache.open(item)) == b"content"  # the second attempt
    assert answers == []


@pytest.mark.parametrize("changed", [b"cOntent", b"", b"longer content"])
def test_changed_file_is_one_error_and_leaves_nothing(cache: NodeCache, server: FakeServer, changed: bytes) -> None:
    item = server.add("a.tar", b"content")
    server.add("a.tar", changed)
    message = r"^http://server/a\.tar: has changed since it was indexed \(sha256 \w{8}, not ed7002b4\); restore it or "
    with pytest.raises(UserError, match=message + "run `featgan index` again$"):
        cache.open(item)
    assert server.downloads() == ["a.tar"] * 2
    assert cached_bytes(cache.folder) == 0


def test_truncated_file_in_the_cache_is_downloaded_again(cache: NodeCache, server: FakeServer) -> None:
    item = server.add("a", b"content")
    cache.fetch_item(item)
    os.truncate(cache.objects / item.sha256, 3)
    assert not cache.contains(item)
    assert read_all(cache.open(item)) == b"content"


def test_open_file_stays_readable_after_its_removal(cache: NodeCache, server: FakeServer) -> None:
    items = server.add_many(5, 4000)
    file = cache.open(items[0])
    for item in items[1:]:
        cache.fetch_item(item)
    assert not cache.contains(items[0])
    assert read_all(file) == bytes(4000)


def test_file_without_a_plan_that_was_used_first_is_removed_first(cache: NodeCache, server: FakeServer) -> None:
    items = server.add_many(4, 3000)
    for item in items[:3]:
        cache.fetch_item(item)
    for age, item in enumerate([items[1], items[2], items[0]]):
        os.utime(cache.objects / item.sha256, (age, age))
    cache.open(items[1])
    cache.fetch_item(items[3])
    assert [cache.contains(item) for item in items] == [True, True, False, True]


def test_size_never_exceeds_the_limit(tmp_path: Path, server: FakeServer) -> None:
    """Several processes with more files than fit watch the size while they download."""
    items = server.add_many(12, 3000)
    folder = tmp_path / "cache"
    NodeCache(folder, server.fetch, 10_000)

    def read_all_items(seed: int) -> None:
        def fetch(source: StoredFile, target: BinaryIO, max_bytes: int, retry_seconds: float) -> Fetched:
            with own_cache.lock_cache():
                assert own_cache.used_bytes() <= 10_000
            return server.fetch(source, target, max_bytes, retry_seconds)

        own_cache = NodeCache(folder, fetch, 10_000)
        for item in random.Random(seed).sample(items, len(items)):
            assert len(read_all(own_cache.open(item))) == 3000

    assert run_processes([lambda seed=seed: read_all_items(seed) for seed in range(4)]) == [0] * 4  # type: ignore[misc]
    assert cached_bytes(folder) <= 10_000


def test_file_larger_than_the_cache_is_one_error(cache: NodeCache, server: FakeServer) -> None:
    item = server.add("large.tar", bytes(20_000))
    with pytest.raises(UserError, match=r"^http://server/large\.tar: has 2e-05 GB, but the cache .* set a larger data"):
        cache.open(item)
    assert server.downloads() == []


def farthest_next_use_misses(order: Sequence[int], capacity: int) -> int:
    """Return the number of downloads of Belady's algorithm, the smallest possible, for files of equal size."""
    cached: set[int] = set()
    misses = 0
    for position, requested in enumerate(order):
        if requested in cached:
            continue
        misses += 1
        if len(cached) == capacity:
            rest = order[position + 1 :]
            cached.remove(max(sorted(cached), key=lambda item: rest.index(item) if item in rest else len(order)))
        cached.add(requested)
    return misses


def smallest_number_of_misses(order: Sequence[int], capacity: int) -> int:
    """Return the smallest number of downloads over all choices of what is removed."""
    states: dict[frozenset[int], int] = {frozenset(): 0}
    for requested in order:
        following: dict[frozenset[int], int] = {}
        for cached, misses in states.items():
            options = [cached] if requested in cached else [cached | {requested}]
            if len(options[0]) > capacity:
                options = [options[0] - {removed} for removed in cached]
            for option in options:
                cost = misses + (requested not in cached)
                following[option] = min(following.get(option, cost), cost)
        states = following
    return min(states.values())


@pytest.mark.parametrize("seed", range(6))
def test_downloads_with_a_plan_are_the_fewest_possible(tmp_path: Path, server: FakeServer, seed: int) -> None:
    generator = random.Random(seed)
    items = server.add_many(6, 1000)
    order = [generator.randrange(6) for _ in range(30)]
    cache = NodeCache(tmp_path / "cache", server.fetch, 3000)
    for position, requested in enumerate(order):
        rest = order[position:]
        cache.publish_plan(
            [PlannedUse(item.sha256, float(rest.index(index))) for index, item in enumerate(items) if index in rest]
        )
        cache.open(items[requested])
    assert len(server.downloads()) == farthest_next_use_misses(order, 3) == smallest_number_of_misses(order, 3)


def test_two_jobs_keep_what_either_needs_soon(tmp_path: Path, server: FakeServer) -> None:
    items = server.add_many(4, 3000)
    jobs = [NodeCache(tmp_path / "cache", server.fetch, 10_000) for _ in range(2)]
    for item in items[:3]:
        jobs[0].fetch_item(item)
    jobs[0].publish_plan([PlannedUse(items[0].sha256, 500), PlannedUse(items[1].sha256, 400)])
    jobs[1].publish_plan([PlannedUse(items[0].sha256, 1), PlannedUse(items[2].sha256, 3)])
    jobs[0].fetch_item(items[3])
    assert [jobs[1].contains(item) for item in items] == [True, False, True, True]


def test_plan_of_an_ended_process_is_ignored(tmp_path: Path, server: FakeServer) -> None:
    items = server.add_many(3, 4000)
    cache = NodeCache(tmp_path / "cache", server.fetch, 8000)
    pinned = [PlannedUse(item.sha256, 0, is_pinned=True) for item in items[:2]]

    def publish() -> None:
        other = NodeCache(tmp_path / "cache", server.fetch, 8000)
        other.fetch_item(items[0])
        other.fetch_item(items[1])
        other.publish_plan(pinned)
        assert not cache.fetch_item(items[2], wait=False)  # while this process runs, its files are pinned
        os.kill(os.getpid(), signal.SIGKILL)

    assert run_processes([publish]) == [-signal.SIGKILL]
    assert len(list(cache.users.glob("*.plan"))) == 1
    assert cache.fetch_item(items[2], wait=False)
    assert list(cache.users.glob("*.plan")) == []


def test_pinned_files_are_removed_only_for_a_file_that_is_needed_now(cache: NodeCache, server: FakeServer) -> None:
    items = server.add_many(3, 4000)
    cache.fetch_item(items[0])
    cache.fetch_item(items[1])
    cache.publish_plan([PlannedUse(item.sha256, use, True) for use, item in enumerate(items)])
    assert not cache.fetch_item(items[2], wait=False)
    assert len(read_all(cache.open(items[2]))) == 4000
    assert cache.contains(items[0])


def test_damaged_plan_counts_as_none(cache: NodeCache, server: FakeServer) -> None:
    items = server.add_many(3, 4000)
    cache.publish_plan([PlannedUse(items[0].sha256, 1, True)])
    cache.plan_path(cache.user).write_bytes(b"damaged")
    for item in items:
        assert cache.fetch_item(item, wait=False)


def test_pickled_cache_reads_the_same_folder(cache: NodeCache, server: FakeServer) -> None:
    item = server.add("a", b"content")
    copy = pickle.loads(pickle.dumps(cache))
    assert read_all(copy.open(item)) == b"content"
    assert cache.contains(item)


def test_default_folder_is_on_the_local_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"featgan-cache-{os.geteuid()}"
    monkeypatch.delenv("SLURM_TMPDIR", raising=False)
    monkeypatch.delenv("TMPDIR", raising=False)
    assert default_cache_folder() == Path("/tmp") / name
    monkeypatch.setenv("TMPDIR", "/scratch")
    assert default_cache_folder() == Path("/scratch") / name
    monkeypatch.setenv("SLURM_TMPDIR", "/local/job")
    assert default_cache_folder() == Path("/local/job") / name


def test_folder_is_readable_by_its_owner_only(cache: NodeCache) -> None:
    assert cache.folder.stat().st_mode & 0o777 == 0o700


def test_default_limit_counts_cached_files_as_free_space(cache: NodeCache, server: FakeServer) -> None:
    cache.fetch_item(server.add("a", bytes(8000)))
    assert NodeCache(cache.folder, server.fetch).max_bytes > 8000


def make_link(folder: Path) -> None:
    (folder.parent / "target").mkdir()
    folder.symlink_to(folder.parent / "target")


def make_writable_by_others(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def make_foreign(folder: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give a folder to another user")
    folder.mkdir()
    os.chown(folder, 1, 1)


def make_file(folder: Path) -> None:
    folder.touch()


@pytest.mark.parametrize(
    ("prepare", "problem"),
    [
        (make_link, "is a symbolic link"),
        (make_writable_by_others, "other users can write to it"),
        (make_foreign, "belongs to another user"),
        (make_file, "already exists"),
    ],
)
def test_unsafe_folder_is_one_error(
    tmp_path: Path, server: FakeServer, prepare: Callable[[Path], None], problem: str
) -> None:
    folder = tmp_path / "cache"
    prepare(folder)
    with pytest.raises(UserError, match=f"^{re.escape(str(folder))}: .*{problem}.*set dataset.cache_dir to") as caught:
        NodeCache(folder, server.fetch)
    assert "\n" not in str(caught.value)


FULL_DISK_SCRIPT = """
import sys
from pathlib import Path
from featgan.data.remote.node_cache import NodeCache
from featgan.errors import UserError
from tests.data.remote.files import FakeServer
from tests.helpers.mounts import read_only, run_with_mounts

folder, server = Path(sys.argv[1]), FakeServer(Path(sys.argv[2]))
items = server.add_many(6, 60_000)
try:
    cache = NodeCache(folder, server.fetch, 10**9)
    print(*(cache.open(item).size for item in items))
    for item in items[3:5]:
        (cache.objects / item.sha256).unlink()
    (folder / "other").write_bytes(bytes(120_000))
    print(cache.open(items[0]).size, len(list(cache.objects.iterdir())))
    print(cache.open(server.add("large", bytes(100_000))).size)
except UserError as error:
    print(error)
print(sum(path.stat().st_size for path in folder.glob("partials/*")))
"""


def run_on_disk(tmp_path: Path, setup: str) -> list[str]:
    """Run the script with another file system in place of the cache folder and return its lines."""
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    command = [sys.executable, "-c", FULL_DISK_SCRIPT, str(folder), str(tmp_path / "server")]
    result = run_with_mounts(setup.format(folder=folder), command)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_full_disk_removes_other_files_and_then_is_one_error(tmp_path: Path) -> None:
    lines = run_on_disk(tmp_path, "mount -t tmpfs -o size=200k,mode=700 tmpfs '{folder}'")
    assert lines[:2] == ["60000 " * 5 + "60000", "60000 1"]
    assert re.fullmatch(r"/\S+/cache: cannot be written: the disk is full; free some space, or set \S+ to .*", lines[2])
    assert lines[3:] == ["0"]


def test_read_only_folder_is_one_error(tmp_path: Path) -> None:
    lines = run_on_disk(tmp_path, read_only(tmp_path / "cache"))
    assert re.fullmatch(r"/\S+: cannot be written: the file system is read-only; .* dataset.cache_dir to .*", lines[0])
