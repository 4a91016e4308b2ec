"""Shards and feature caches behind a URL, and staged ones: equal to local ones, checked, and safe to open."""

import json
import multiprocessing
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featgan.data.feature_cache.cache import FeatureCache
from featgan.data.feature_cache.storage import cache_folder
from featgan.data.remote.access import DataAccess, open_node_cache
from featgan.data.shards.manifest import MANIFEST_FILE
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from tests.conftest import World
from tests.helpers.servers import FaultyServer, serve_folder, serve_s3


@pytest.fixture
def copy(world: World, tmp_path: Path) -> Path:
    """Copy the shards and their feature caches."""
    shutil.copytree(world.shards.path, tmp_path / "shards")
    return tmp_path / "shards"


@pytest.fixture
def server(copy: Path) -> Iterator[FaultyServer]:
    with serve_folder(copy) as server:
        yield server


@pytest.fixture
def url(server: FaultyServer) -> str:
    return server.url


@pytest.fixture
def access(tmp_path: Path) -> Iterator[DataAccess]:
    yield DataAccess(cache_dir=tmp_path / "cache", cache_gb=0.01, retry_seconds=0.0)
    open_node_cache.cache_clear()


def edit_manifest(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_equal_data(shards: ShardSet, cache: FeatureCache, expected: World) -> None:
    """Assert that images, labels and features are those of the tiny data set."""
    assert shards.fingerprint == expected.shards.fingerprint
    for name in expected.shards.split_names:
        split, expected_split = shards.get_split(name), expected.shards.get_split(name)
        rows = np.arange(len(expected_split))[::-1]
        assert torch.equal(split.decode(rows), expected_split.decode(rows))
        assert np.array_equal(split.expression, expected_split.expression)
        for flipped in (False, True):
            assert np.array_equal(cache.features(name, rows, flipped), expected.cache.features(name, rows, flipped))
            assert np.array_equal(cache.outputs(name, rows, flipped), expected.cache.outputs(name, rows, flipped))
    assert torch.equal(cache.space.components, expected.cache.space.components)
    assert cache.head is not None
    shards.verify()
    cache.verify()


@pytest.mark.parametrize("suffix", ["", "/", "/manifest.json"])
def test_shards_behind_a_url_equal_local_ones(world: World, url: str, access: DataAccess, suffix: str) -> None:
    shards = ShardSet.open(url + suffix, access)
    cache = FeatureCache.open(shards, "linear")
    assert (cache.name, str(shards.location)) == ("linear", url + suffix.removesuffix("/manifest.json"))
    assert_equal_data(shards, cache, world)


def test_second_start_downloads_only_the_manifests(world: World, server: FaultyServer, access: DataAccess) -> None:
    assert_equal_data(shards := ShardSet.open(server.url, access), FeatureCache.open(shards, "linear"), world)
    requests = sorted(server.requests)
    # manifests, tars, indexes, arrays, and the space, head and summary
    assert len(requests) == len(set(requests)) == 2 + 4 + 2 + 8 + 3
    server.requests.clear()
    assert_equal_data(shards := ShardSet.open(server.url, access), FeatureCache.open(shards, "linear"), world)
    assert server.requests == ["/manifest.json", "/features/linear/manifest.json"]


@pytest.mark.parametrize("file", ["train-00000.tar", "train.index.npz", "features/linear/train-00000.features.npy"])
def test_changed_file_is_one_line(url: str, copy: Path, access: DataAccess, file: str) -> None:
    path = copy / file
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=re.escape(f"{url}/{file}: has changed since it was indexed")):
        shards = ShardSet.open(url, access)
        shards.get_split("train").decode([0])
        FeatureCache.open(shards, "linear").features("train", [0])


def test_missing_or_damaged_manifest_is_one_line(url: str, copy: Path, access: DataAccess) -> None:
    (copy / MANIFEST_FILE).write_text("{")
    with pytest.raises(UserError, match=re.escape(f"{url}/manifest.json: not valid JSON")):
        ShardSet.open(url, access)
    edit_manifest(copy / "features" / "linear" / MANIFEST_FILE, version=7)
    shutil.copy(copy / "features" / "linear" / MANIFEST_FILE, copy / MANIFEST_FILE)
    with pytest.raises(UserError, match=re.escape(f"{url}/manifest.json: corrupted (format:")):
        ShardSet.open(url, access)
    (copy / MANIFEST_FILE).unlink()
    with pytest.raises(UserError, match=re.escape(f"{url}/manifest.json")):
        ShardSet.open(url, access)


def test_feature_manifest_cannot_name_files_outside_the_cache(url: str, copy: Path, access: DataAccess) -> None:
    path = copy / "features" / "linear" / MANIFEST_FILE
    files = json.loads(path.read_text())["files"]
    files["train-00000.features.npy"]["sha256"] = "../../secret"
    edit_manifest(path, files=files)
    with pytest.raises(UserError, match=r"corrupted \(files\.train-00000\.features\.npy\.sha256"):
        FeatureCache.open(ShardSet.open(url, access), "linear")


def test_features_are_not_written_to_a_url(url: str, access: DataAccess) -> None:
    with pytest.raises(
        UserError, match=re.escape(f"{url}/features/new: the features cannot be written to a URL; choose a local")
    ):
        cache_folder(ShardSet.open(url, access), "new")


def test_cache_folder_that_cannot_be_written_is_one_line(url: str, access: DataAccess, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "cache"))):
        ShardSet.open(url, access)


def test_processes_that_start_together_download_each_file_once(
    world: World, server: FaultyServer, access: DataAccess
) -> None:
    def read_all() -> None:
        assert_equal_data(shards := ShardSet.open(server.url, access), FeatureCache.open(shards, "linear"), world)

    processes = [multiprocessing.get_context("fork").Process(target=read_all) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    requests = [path for path in server.requests if "manifest" not in path]
    assert len(requests) == len(set(requests)) == 4 + 2 + 8 + 3


def test_shards_in_object_storage_equal_local_ones(
    world: World, copy: Path, access: DataAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_s3() as s3:
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        s3.put_folder("bucket", copy.parent)
        shards = ShardSet.open("s3://bucket/shards/manifest.json", access)
        cache = FeatureCache.open(shards, "linear")
        assert_equal_data(shards, cache, world)
        assert str(cache.location) == "s3://bucket/shards/features/linear"


def test_copies_of_old_data_sets_are_removed(url: str, copy: Path, access: DataAccess, tmp_path: Path) -> None:
    first = ShardSet.open(url, access)
    edit_manifest(copy / MANIFEST_FILE, source="other")
    second = ShardSet.open(url, access)
    assert first.path != second.path and first.path.is_dir()
    os.utime(first.path, (0, 0))
    ShardSet.open(url, access)
    assert not first.path.exists() and second.path.is_dir()
    assert len(first.get_split("train")) == len(second.get_split("train"))


def test_staged_shards_equal_those_in_place(world: World, copy: Path, access: DataAccess, tmp_path: Path) -> None:
    staged = replace(access, stage=True)
    shards = ShardSet.open(copy, staged)
    cache = FeatureCache.open(shards, "linear")
    assert_equal_data(shards, cache, world)
    objects = {path.name for path in (tmp_path / "cache" / "objects").iterdir()}
    split_files = [shard.sha256 for split in shards.manifest.splits.values() for shard in split.shards]
    arrays = [entry.sha256 for name, entry in cache.manifest.files.items() if name.endswith(".npy")]
    assert objects == {*split_files, *arrays}


def test_local_shards_use_no_cache(copy: Path, access: DataAccess, tmp_path: Path) -> None:
    FeatureCache.open(ShardSet.open(copy, access), "linear").features("train", [0])
    assert not (tmp_path / "cache").exists()


def test_changed_staged_shard_is_one_line(copy: Path, access: DataAccess) -> None:
    path = copy / "train-00000.tar"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    shards = ShardSet.open(copy, replace(access, stage=True))
    with pytest.raises(UserError, match=re.escape(f"{path}: has changed since it was indexed")):
        shards.get_split("train").decode([0])


def test_path_of_the_manifest_is_that_of_the_shards(copy: Path) -> None:
    assert ShardSet.open(copy / MANIFEST_FILE).path == copy
