"""Data whose content changed at the same size is detected by every command; unchanged files are hashed only once."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from featgan.blackbox.extraction import extract_features
from featgan.blackbox.fitting.fit import fit_blackbox
from featgan.cli.info import describe_path
from featgan.data.feature_cache.cache import FeatureCache
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from featgan.evaluation.evaluate import evaluate_run
from featgan.report.render import render_run
from featgan.system import verified_hashes
from featgan.system.files import atomic_write, sha256_of
from featgan.system.verified_hashes import first_modified_file, verify_once
from featgan.training.dry_run import describe_plan
from featgan.training.train import train
from tests.conftest import World, write_features


@pytest.fixture(scope="module")
def copied_shards(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Copy the shards, so that tests can corrupt them, and train a run on them."""
    root = tmp_path_factory.mktemp("copied")
    shutil.copytree(world.shards.path, root / "shards")
    shards = ShardSet.open(root / "shards")
    copy = World(world.source, shards, FeatureCache.open(shards, "linear"), world.classifier)
    train(copy.make_config(root / "run"))
    return copy


@pytest.fixture
def flip_bit_temporarily() -> Iterator[Callable[[Path], None]]:
    """Yield a function that flips one bit of a file; the content is restored after the test."""
    before: dict[Path, bytes] = {}

    def flip(path: Path) -> None:
        before[path] = path.read_bytes()
        content = bytearray(before[path])
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    yield flip
    for path, content in before.items():
        path.write_bytes(content)


COMMANDS_BY_NAME = {
    "train": lambda world, run: train(world.make_config(run, training={"steps": 6})),
    "dry run": lambda world, run: describe_plan(world.make_config(run)),
    "evaluate": lambda world, run: evaluate_run(run),
    "render": lambda world, run: render_run(run),
    "info": lambda world, run: describe_path(world.shards.path),
    "fit": lambda world, run: fit_blackbox(world.shards.path, "expression", run.with_name("classifier")),
    "extract": lambda world, run: extract_features(world.shards.path, "a_classifier_that_is_never_loaded", "linear"),
}


@pytest.mark.parametrize("command", COMMANDS_BY_NAME)
def test_changed_shard_is_rejected(
    command: str, copied_shards: World, flip_bit_temporarily: Callable[[Path], None]
) -> None:
    flip_bit_temporarily(copied_shards.shards.path / "train-00000.tar")
    with pytest.raises(UserError, match=r"train-00000\.tar: its checksum does not match"):
        COMMANDS_BY_NAME[command](copied_shards, copied_shards.shards.path.with_name("run"))


@pytest.mark.parametrize("command", ["train", "evaluate", "render"])
def test_changed_features_are_rejected(
    command: str, copied_shards: World, flip_bit_temporarily: Callable[[Path], None]
) -> None:
    flip_bit_temporarily(copied_shards.cache.path / "validation-00000.features.npy")
    with pytest.raises(UserError, match=r"validation-00000\.features\.npy: its checksum does not match"):
        COMMANDS_BY_NAME[command](copied_shards, copied_shards.shards.path.with_name("run"))


def backdate_file(path: Path, seconds: int = 60) -> None:
    """Set the modification time of a file to `seconds` ago."""
    earlier = path.stat().st_mtime_ns - seconds * 10**9
    os.utime(path, ns=(earlier, earlier))


def test_file_is_hashed_once_and_again_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    monkeypatch.setattr(verified_hashes, "sha256_of", lambda path: hashed.append(path.name) or sha256_of(path))
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
        backdate_file(tmp_path / name)
    hashes = {name: sha256_of(tmp_path / name) for name in ("a", "b")}
    assert first_modified_file(tmp_path, hashes, "files") is None and hashed == ["a", "b"]
    assert first_modified_file(tmp_path, hashes, "files") is None and hashed == ["a", "b"]
    (tmp_path / "b").write_text("c")
    assert first_modified_file(tmp_path, hashes, "files") == tmp_path / "b" and hashed == ["a", "b", "b"]
    # With another manifest, the memo of the old one is not used.
    assert first_modified_file(tmp_path, {"a": "0" * 64}, "files") == tmp_path / "a"


def test_new_file_is_not_added_to_the_memo(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    assert first_modified_file(tmp_path, {"a": sha256_of(tmp_path / "a")}, "files") is None
    assert not (tmp_path / verified_hashes.MEMO_FILE).exists()


def test_memo_of_a_read_only_folder_is_in_the_cache_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, hashed = tmp_path / "data", []
    folder.mkdir()

    def write(path: Path, data: bytes) -> None:
        if path.parent == folder:
            raise OSError(errno.EROFS, "Read-only file system")
        atomic_write(path, data)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(verified_hashes, "sha256_of", lambda path: hashed.append(path.name) or sha256_of(path))
    monkeypatch.setattr(verified_hashes, "atomic_write", write)
    (folder / "a").write_text("a")
    backdate_file(folder / "a")
    hashes = {"a": sha256_of(folder / "a")}
    assert [first_modified_file(folder, hashes, "files") for _ in range(3)] == [None] * 3 and hashed == ["a"]
    assert not caplog.records and [path.name for path in folder.iterdir()] == ["a"]
    (folder / "a").write_text("b")
    assert first_modified_file(folder, hashes, "files") == folder / "a"
    # Without a memo, files are hashed every time.
    (folder / "a").write_text("a")
    backdate_file(folder / "a")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "a"))
    assert [first_modified_file(folder, hashes, "files") for _ in range(2)] == [None] * 2 and len(hashed) == 4
    assert all("are hashed at every start" in record.getMessage() for record in caplog.records) and caplog.records


def test_other_checks_stay_in_the_memo(tmp_path: Path) -> None:
    calls: list[str] = []
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
        backdate_file(tmp_path / name)
    for _ in range(2):
        verify_once(tmp_path / "a", "check", lambda: calls.append("a"))
        assert first_modified_file(tmp_path, {"b": sha256_of(tmp_path / "b")}, "files") is None
    assert calls == ["a"]
    verify_once(tmp_path / "a", "another check", lambda: calls.append("again"))
    assert calls == ["a", "again"]
    assert first_modified_file(tmp_path, {"c": sha256_of(tmp_path / "c")}, "files") is None
    assert sorted(json.loads((tmp_path / verified_hashes.MEMO_FILE).read_text())) == ["a", "b", "c"]
    (tmp_path / "b").unlink()
    (tmp_path / "c").write_text("d")
    backdate_file(tmp_path / "c", 120)
    assert first_modified_file(tmp_path, {"c": sha256_of(tmp_path / "c")}, "files") is None
    assert sorted(json.loads((tmp_path / verified_hashes.MEMO_FILE).read_text())) == ["a", "c"], "removed files"


def test_failed_check_is_repeated(tmp_path: Path) -> None:
    def reject() -> None:
        raise UserError("damaged")

    (tmp_path / "a").write_text("a")
    backdate_file(tmp_path / "a")
    for _ in range(2):
        with pytest.raises(UserError, match="damaged"):
            verify_once(tmp_path / "a", "check", reject)


@pytest.mark.parametrize("memo", ["", "[1]", '{"a": "b"}', "[" * 100_000, '{"a": [1, 2, 3]}'])
def test_corrupted_memo_is_ignored(memo: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    backdate_file(tmp_path / "a")
    (tmp_path / verified_hashes.MEMO_FILE).write_text(memo)
    assert first_modified_file(tmp_path, {"a": "0" * 64}, "files") == tmp_path / "a"
    assert first_modified_file(tmp_path, {"a": sha256_of(tmp_path / "a")}, "files") is None


def test_changed_components_are_rejected_only_if_the_run_uses_them(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.shards.path, tmp_path / "shards")
    shards = ShardSet.open(tmp_path / "shards")
    copy = World(world.source, shards, world.cache, world.classifier)
    dataset = {"shards": str(shards.path), "feature_cache": "linear-3"}
    configs = {
        encoding: copy.make_config(tmp_path / encoding, dataset={**dataset, "condition": {"encoding": encoding}})
        for encoding in ("raw", "standardized", "components")
    }
    for config in configs.values():
        train(config)
    write_features(shards, world.classifier, "linear-3", 2)
    for encoding in ("raw", "standardized"):
        train(configs[encoding])
    with pytest.raises(
        UserError, match=r"trained on 3 components features, .* have changed \(now 2\); .*the previous --num-components"
    ):
        train(configs["components"])
