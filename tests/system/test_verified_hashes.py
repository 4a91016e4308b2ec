"""Data whose content changed at equal size: found by every command, and hashed once only while it is unchanged."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from featgan.blackbox.extraction import extract
from featgan.blackbox.fitting.fit import fit_blackbox
from featgan.cli.info import describe
from featgan.data.feature_cache.cache import FeatureCache
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from featgan.evaluation.evaluate import evaluate_run
from featgan.report.render import render_run
from featgan.system import verified_hashes
from featgan.system.files import sha256_of
from featgan.system.verified_hashes import first_changed
from featgan.training.dry_run import describe_plan
from featgan.training.train import train
from tests.conftest import World, write_features


@pytest.fixture(scope="module")
def copied(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The world's shards elsewhere, to be damaged, with a run that was trained on them."""
    root = tmp_path_factory.mktemp("copied")
    shutil.copytree(world.shards.path, root / "shards")
    shards = ShardSet.open(root / "shards")
    copy = World(world.source, shards, FeatureCache.open(shards, "stand-in"), world.box)
    train(copy.config(root / "run"))
    return copy


@pytest.fixture
def change() -> Iterator[Callable[[Path], None]]:
    """Flips one bit of a file and puts its content back afterwards."""
    before: dict[Path, bytes] = {}

    def flip(path: Path) -> None:
        before[path] = path.read_bytes()
        content = bytearray(before[path])
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    yield flip
    for path, content in before.items():
        path.write_bytes(content)


COMMANDS = {
    "train": lambda world, run: train(world.config(run, training={"steps": 6})),
    "dry run": lambda world, run: describe_plan(world.config(run)),
    "evaluate": lambda world, run: evaluate_run(run),
    "render": lambda world, run: render_run(run),
    "info": lambda world, run: describe(world.shards.path),
    "fit": lambda world, run: fit_blackbox(world.shards.path, "expression", run.with_name("box")),
    "extract": lambda world, run: extract(world.shards.path, "a box that is never opened", "stand-in"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_changed_shard_is_refused_by(command: str, copied: World, change: Callable[[Path], None]) -> None:
    change(copied.shards.path / "train-00000.tar")
    with pytest.raises(UserError, match=r"train-00000\.tar: its content is not what was packed"):
        COMMANDS[command](copied, copied.shards.path.with_name("run"))


@pytest.mark.parametrize("command", ["train", "evaluate", "render"])
def test_changed_features_are_refused_by(command: str, copied: World, change: Callable[[Path], None]) -> None:
    change(copied.cache.path / "validation-00000.features.npy")
    with pytest.raises(UserError, match=r"validation-00000\.features\.npy: its content is not what was extracted"):
        COMMANDS[command](copied, copied.shards.path.with_name("run"))


def settle(path: Path, seconds: int = 60) -> None:
    """As if the file had been written a while ago."""
    earlier = path.stat().st_mtime_ns - seconds * 10**9
    os.utime(path, ns=(earlier, earlier))


def test_a_file_is_hashed_once_and_again_when_it_was_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(verified_hashes, "sha256_of", lambda path: read.append(path.name) or sha256_of(path))
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
        settle(tmp_path / name)
    hashes = {name: sha256_of(tmp_path / name) for name in ("a", "b")}
    assert first_changed(tmp_path, hashes, "files") is None and read == ["a", "b"]
    assert first_changed(tmp_path, hashes, "files") is None and read == ["a", "b"]
    (tmp_path / "b").write_text("c")
    assert first_changed(tmp_path, hashes, "files") == tmp_path / "b" and read == ["a", "b", "b"]
    # Another manifest beside the same files: what was whole for the old one says nothing about the new one.
    assert first_changed(tmp_path, {"a": "0" * 64}, "files") == tmp_path / "a"


def test_a_file_of_this_second_is_not_remembered(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    assert first_changed(tmp_path, {"a": sha256_of(tmp_path / "a")}, "files") is None
    assert not (tmp_path / verified_hashes.MEMORY).exists()


@pytest.mark.parametrize("memory", ["", "[1]", '{"a": "b"}', "[" * 100_000, '{"a": [1, 2, 3]}'])
def test_a_damaged_memory_is_none(memory: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    settle(tmp_path / "a")
    (tmp_path / verified_hashes.MEMORY).write_text(memory)
    assert first_changed(tmp_path, {"a": "0" * 64}, "files") == tmp_path / "a"
    assert first_changed(tmp_path, {"a": sha256_of(tmp_path / "a")}, "files") is None


def test_other_components_refuse_a_run_on_components_only(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.shards.path, tmp_path / "shards")
    shards = ShardSet.open(tmp_path / "shards")
    copy = World(world.source, shards, world.cache, world.box)
    dataset = {"shards": str(shards.path), "features": "stand-in-3"}
    configs = {
        encoding: copy.config(tmp_path / encoding, dataset={**dataset, "condition": {"encoding": encoding}})
        for encoding in ("raw", "standardized", "components")
    }
    for config in configs.values():
        train(config)
    write_features(shards, world.box, "stand-in-3", 2)
    for encoding in ("raw", "standardized"):
        train(configs[encoding])
    with pytest.raises(UserError, match=r"trained on 3 components features, .* has 2 .*--components of then"):
        train(configs["components"])
