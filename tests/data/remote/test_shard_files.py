"""Shards and feature arrays that are read through the node cache."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest

from featgan.data.feature_cache.storage import ShardArrays
from featgan.data.remote.node_cache import CacheItem, NodeCache
from featgan.data.remote.shard_files import CachedFiles, LocalFiles
from featgan.data.shards.reading import ShardReader
from featgan.errors import UserError
from tests.data.remote.files import FakeServer

NUM_SHARDS, NUM_IMAGES, WIDTH = 4, 3, 5


@pytest.fixture
def server(tmp_path: Path) -> FakeServer:
    return FakeServer(tmp_path / "server")


def open_cache(tmp_path: Path, server: FakeServer, max_bytes: int = 10_000) -> NodeCache:
    return NodeCache(tmp_path / "cache", server.fetch, max_bytes)


def add_arrays(server: FakeServer) -> list[CacheItem]:
    """Store one feature file per shard."""
    items = []
    for shard in range(NUM_SHARDS):
        buffer = io.BytesIO()
        np.save(buffer, np.random.default_rng(shard).random((NUM_IMAGES, 2, WIDTH), np.float32))
        items.append(server.add(f"{shard}.npy", buffer.getvalue()))
    return items


def paths_of(items: list[CacheItem]) -> list[Path]:
    return [item.source.path for item in items]  # type: ignore[attr-defined]


def inodes_in_use() -> set[int]:
    """Return the files that this process has open or mapped, by their number on the disk."""
    numbers = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            numbers.add(link.stat().st_ino)
        except FileNotFoundError:
            continue
    return numbers | {int(line.split()[4]) for line in Path("/proc/self/maps").read_text().splitlines()}


def test_shards_are_read_through_the_cache(tmp_path: Path, server: FakeServer) -> None:
    items = server.add_many(NUM_SHARDS, 400)
    local = ShardReader(LocalFiles(paths_of(items)))
    cached = ShardReader(CachedFiles(open_cache(tmp_path, server), items))
    for reader in (cached, pickle.loads(pickle.dumps(ShardReader(LocalFiles(paths_of(items)))))):
        assert [reader.read(shard, 100, 50) for shard in (2, 0, 2)] == [
            local.read(shard, 100, 50) for shard in (2, 0, 2)
        ]
    assert sorted(server.downloads()) == ["file-0", "file-2"]
    assert cached.location(2) == "http://server/file-2"


def test_features_are_read_through_the_cache(tmp_path: Path, server: FakeServer) -> None:
    items = add_arrays(server)
    counts = [NUM_IMAGES] * NUM_SHARDS
    local = ShardArrays(LocalFiles(paths_of(items)), counts, WIDTH)
    cached = ShardArrays(CachedFiles(open_cache(tmp_path, server), items), counts, WIDTH)
    cached.check_sizes()
    assert server.downloads() == []  # the sizes are in the manifest
    rows, flipped = np.array([10, 0, 3, 11]), np.array([True, False, True, False])
    assert np.array_equal(cached.gather_rows(rows, flipped), local.gather_rows(rows, flipped))
    assert sorted(server.downloads()) == ["0.npy", "1.npy", "3.npy"]


def test_features_of_a_wrong_shape_are_rejected(tmp_path: Path, server: FakeServer) -> None:
    arrays = ShardArrays(CachedFiles(open_cache(tmp_path, server), add_arrays(server)), [NUM_IMAGES] * 4, WIDTH - 1)
    with pytest.raises(UserError, match=r"http://server/0\.npy: contains float32 \[3, 2, 5\]"):
        arrays.get_array(0)


@pytest.mark.parametrize("use_retain", [True, False])
def test_removed_files_are_closed(tmp_path: Path, server: FakeServer, use_retain: bool) -> None:
    tars, arrays = server.add_many(NUM_SHARDS, 400), add_arrays(server)
    cache = open_cache(tmp_path, server)
    reader = ShardReader(CachedFiles(cache, tars))
    features = ShardArrays(CachedFiles(cache, arrays), [NUM_IMAGES] * NUM_SHARDS, WIDTH)
    for shard in (0, 1):
        reader.read(shard, 0, 4)
        features.get_array(shard)
    removed = [cache.objects / item.sha256 for item in (tars[0], arrays[0])]
    numbers = {path.stat().st_ino for path in removed}
    for path in removed:
        path.unlink()
    assert numbers <= inodes_in_use()
    if use_retain:
        reader.retain({1, 2})
        features.retain({1, 2})
    else:
        reader.read(2, 0, 4)
        features.get_array(2)
    assert not numbers & inodes_in_use()
    kept = (cache.objects / tars[1].sha256).stat().st_ino
    assert kept in inodes_in_use()
    assert reader.read(0, 0, 4) == (0).to_bytes(4)
    assert server.downloads().count("file-0") == 2


def test_local_files_stay_open(tmp_path: Path, server: FakeServer) -> None:
    reader = ShardReader(LocalFiles(paths_of(server.add_many(2, 400))))
    reader.read(0, 0, 4)
    reader.retain({1})
    assert list(reader.files) == [0]


def test_shard_that_the_cache_cannot_download_is_one_line(tmp_path: Path, server: FakeServer) -> None:
    (item,) = server.add_many(1, 400)
    (server.folder / "file-0").write_bytes(b"x" * 400)
    reader = ShardReader(CachedFiles(open_cache(tmp_path, server), [item]))
    with pytest.raises(UserError, match=r"http://server/file-0: has changed since it was indexed"):
        reader.read(0, 0, 4)
