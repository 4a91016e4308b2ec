"""Tests of shards whose tars stay where they are: index, images, resume, damaged and malicious manifests."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featgan.data.packing.indexing import index_shards
from featgan.data.packing.pack import PackSummary, pack_shards
from featgan.data.remote.access import DataAccess
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from tests.data.webdataset.test_listing import draw_image, make_samples, write_tar
from tests.helpers.servers import FaultyServer, serve_folder, wait_seconds

SIZE = 16


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "source"
    write_tar(folder / "set-train-000.tar", make_samples(0, 12))
    write_tar(folder / "set-train-001.tar", make_samples(12, 9))
    write_tar(folder / "set-val-000.tar", make_samples(30, 6))
    return folder


@pytest.fixture
def server(source: Path) -> Iterator[FaultyServer]:
    with serve_folder(source) as http_server:
        yield http_server


def pattern(server: FaultyServer) -> str:
    return f"{server.url}/set-{{train-000,train-001,val-000}}.tar"


def index(sources: list[str], out: Path, **options: Any) -> PackSummary:
    return index_shards(sources, out, **{"image_size": SIZE, "workers": 1, **options})


def reference_image(number: int, crop: int | None = None) -> np.ndarray:
    """Return an image as packing crops and resizes it before it is compressed, uint8 [3, S, S]."""
    path = Path(os.environ["TMPDIR_OF_TEST"]) / "image.jpg"
    path.write_bytes(draw_image(number))
    image = Image.open(path).convert("RGB")
    side = crop or min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    window = (left, top, left + side, top + side)
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.LANCZOS, window)).transpose(2, 0, 1)


@pytest.fixture(autouse=True)
def image_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR_OF_TEST", str(tmp_path))


def check_images(shards: ShardSet, crop: int | None = None) -> None:
    """Check all images of the source against the reference."""
    for split, numbers in (("train", range(21)), ("validation", range(30, 36))):
        images = shards.get_split(split).decode(np.arange(len(numbers))).numpy()
        assert np.array_equal(images, [reference_image(number, crop) for number in numbers])
        flipped = shards.get_split(split).decode([1], np.array([True])).numpy()
        assert np.array_equal(flipped[0], images[1][:, :, ::-1])


@pytest.mark.parametrize("crop", [None, 12])
def test_images_and_labels_are_those_of_packing(source: Path, tmp_path: Path, crop: int | None) -> None:
    summary = index([str(source)], tmp_path / "out", crop=crop)
    assert summary.manifest.version == 2 and not summary.already_packed
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "manifest.json",
        "train.index.npz",
        "validation.index.npz",
    ]
    shards = ShardSet.open(tmp_path / "out")
    shards.verify()
    check_images(shards, crop)
    pack_shards("webdataset", str(source), tmp_path / "packed", image_size=SIZE, workers=1)
    packed = ShardSet.open(tmp_path / "packed")
    for split in ("train", "validation"):
        assert read_keys(shards, split) == read_keys(packed, split)
        assert shards.get_split(split).expression.tolist() == packed.get_split(split).expression.tolist()
    assert not list(tmp_path.glob(".*"))
    assert index([str(source)], tmp_path / "out", crop=crop).already_packed
    with pytest.raises(UserError, match="packed with image size 16, not 32"):
        index([str(source)], tmp_path / "out", crop=crop, image_size=32)
    other = index([str(source)], tmp_path / "other", crop=8)
    assert other.manifest.fingerprint != shards.fingerprint


def read_keys(shards: ShardSet, name: str) -> list[str]:
    """Return the keys of a split."""
    split = shards.get_split(name)
    keys: list[str] = split.keys_of(range(len(split))).tolist()
    return keys


def test_same_tars_give_the_same_files(source: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        index([str(source)], tmp_path / name)
    for name in ("manifest.json", "train.index.npz"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_workers_give_the_same_files_and_the_first_error(source: Path, tmp_path: Path) -> None:
    for workers in (1, 3):
        index([str(source)], tmp_path / str(workers), workers=workers)
    for name in ("manifest.json", "train.index.npz", "validation.index.npz"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()
    for number in range(2):
        path = source / f"set-train-00{number}.tar"
        path.write_bytes(path.read_bytes()[: 2048 - 512 * number])
    with pytest.raises(UserError, match=r"set-train-000\.tar: truncated at byte 2,048") as error:
        index([str(source)], tmp_path / "out", workers=2)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_one_tar_is_in_both_splits(source: Path, tmp_path: Path) -> None:
    manifest = index([str(source / "set-train-000.tar")], tmp_path / "out", validation_fraction=0.25).manifest
    train, validation = (manifest.splits[name].shards[0] for name in ("train", "validation"))
    assert (train.count, validation.count) == (9, 3) and manifest.validation_split == "created"
    assert train.location == validation.location == "./../source/set-train-000.tar"
    shards = ShardSet.open(tmp_path / "out")
    shards.verify()
    keys = [*read_keys(shards, "train"), *read_keys(shards, "validation")]
    assert len(set(keys)) == 12 and shards.get_split("validation").decode([0, 2]).shape == (2, 3, SIZE, SIZE)


def test_tars_on_a_server_are_read_through_the_node_cache(server: FaultyServer, source: Path, tmp_path: Path) -> None:
    local = index([str(source)], tmp_path / "local").manifest
    remote = index([pattern(server)], tmp_path / "remote").manifest
    assert len(server.requests) == 3
    for name, split in local.splits.items():
        assert [shard.sha256 for shard in split.shards] == [shard.sha256 for shard in remote.splits[name].shards]
        assert split.index_sha256 == remote.splits[name].index_sha256
    shards = ShardSet.open(tmp_path / "remote", DataAccess(tmp_path / "cache"))
    shards.verify()
    check_images(shards)
    assert len(server.requests) == 6, "each tar is downloaded once"


def test_index_next_to_the_tars_can_be_read_from_a_server(server: FaultyServer, source: Path, tmp_path: Path) -> None:
    index([str(source)], source / "index")
    shards = ShardSet.open(f"{server.url}/index/manifest.json", DataAccess(tmp_path / "cache"))
    check_images(shards)


def test_url_with_a_password_is_not_stored(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^https://host/a\.tar: contains a password or a query"):
        index(["https://user:secret@host/a.tar"], tmp_path / "out")


def test_changed_tar_is_found(source: Path, tmp_path: Path) -> None:
    index([str(source)], tmp_path / "out")
    tar = source / "set-train-001.tar"
    content = bytearray(tar.read_bytes())
    content[600] ^= 1
    tar.write_bytes(content)
    with pytest.raises(UserError, match=r"set-train-001\.tar: its checksum does not match"):
        ShardSet.open(tmp_path / "out").verify()
    tar.write_bytes(content[:-512])
    with pytest.raises(UserError, match=r"set-train-001\.tar: the shard is truncated"):
        ShardSet.open(tmp_path / "out")
    tar.unlink()
    with pytest.raises(UserError, match=r"set-train-001\.tar: the shard is missing"):
        ShardSet.open(tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("missing.tar", "missing.tar: no such file"),
        ("loop.tar", "loop.tar: symbolic links form a loop"),
        ("..", "is a folder, not a file"),
        ("pipe.tar", "is a pipe"),
        ("a\0b", "contains no file"),
        ("file:///a%00b", "contains no file"),
        ("x" * 5000, "the path is too long"),
    ],
)
def test_unreadable_tar_of_a_list_is_one_line(tmp_path: Path, name: str, problem: str) -> None:
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "loop.tar").symlink_to("loop.tar")
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"train": {"filenames": [name]}}}))
    with pytest.raises(UserError) as error:
        index([str(tmp_path)], tmp_path / "out")
    assert problem in str(error.value) and "\n" not in str(error.value) and "\0" not in str(error.value)
    assert "cannot be written" not in str(error.value)


@pytest.mark.parametrize("content", [None, b"damaged"])
def test_missing_index_is_one_line_and_is_written_again(source: Path, tmp_path: Path, content: bytes | None) -> None:
    manifest = index([str(source)], tmp_path / "out").manifest
    path = tmp_path / "out" / "train.index.npz"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"train\.index\.npz: missing or changed; run the same `featgan index` command"):
        ShardSet.open(tmp_path / "out").get_split("train")
    assert index([str(source)], tmp_path / "out").already_packed
    assert ShardSet.open(tmp_path / "out").manifest == manifest
    check_images(ShardSet.open(tmp_path / "out"))


def test_unusable_images_are_found(tmp_path: Path) -> None:
    samples = [(f"{number:03d}", {"jpg": draw_image(number)}) for number in range(250)]
    write_tar(tmp_path / "a.tar", [*samples, ("text", {"jpg": b"text"}), ("none", {"cls": b"1"})])
    manifest = index([str(tmp_path / "a.tar")], tmp_path / "out").manifest
    assert manifest.skipped == {"missing file": 1, "not an image": 1}
    assert [file.source for file in manifest.skipped_files] == ["a.tar/text.jpg", "a.tar/none"]
    write_tar(tmp_path / "b.tar", [("a", {"jpg": b"text"}), ("b", {"jpg": draw_image(0)})])
    with pytest.raises(UserError, match=r"b\.tar/a\.jpg: not an image; at most 1% may be unusable"):
        index([str(tmp_path / "b.tar")], tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
    truncated = draw_image(0)[:-200]
    write_tar(tmp_path / "c.tar", [("a", {"png": draw_image(0, "PNG")[:-60] + bytes(60)}), ("b", {"jpg": truncated})])
    with pytest.raises(UserError, match=r"c\.tar/a\.png: .* and 1 more of 2 images"):
        index([str(tmp_path / "c.tar")], tmp_path / "bad", check_images=True)


def test_killed_command_continues_after_the_last_tar(server: FaultyServer, tmp_path: Path) -> None:
    server.fail("/set-train-001.tar", wait_seconds(60))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "featgan", "index", pattern(server), "--out", str(out), "--image-size", str(SIZE)]
    command += ["--workers", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while "/set-train-001.tar" not in server.requests and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert not out.exists() and len(list((tmp_path / ".out.scans").glob("*.jsonl"))) == 1
    index([pattern(server)], out)
    assert server.requests.count("/set-train-000.tar") == 1 and server.requests.count("/set-train-001.tar") == 2
    reference = index([pattern(server)], tmp_path / "reference").manifest
    assert ShardSet.open(out).manifest == reference and not (tmp_path / ".out.scans").exists()


def test_error_does_not_wait_for_the_other_tars(server: FaultyServer, source: Path, tmp_path: Path) -> None:
    server.fail("/set-val-000.tar", wait_seconds(300))
    (source / "set-train-000.tar").write_bytes(b"x" * 1024)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"set-train-000\.tar: not a readable tar file"):
        index([str(source / "set-train-000.tar"), f"{server.url}/set-val-000.tar"], tmp_path / "out", workers=2)
    assert time.monotonic() - started < 200


def test_damaged_results_of_a_killed_command_are_not_used(source: Path, tmp_path: Path) -> None:
    reference = index([str(source)], tmp_path / "reference").manifest
    folder = tmp_path / ".out.scans"
    with pytest.raises(UserError, match="not a number"):
        index([str(source)], tmp_path / "out", layout_options={"label": "cls,valence=txt"})
    assert not folder.exists()
    write_tar(source / "set-train-002.tar", [("k", {"jpg": draw_image(0), "cls": b"\xff"})])
    with pytest.raises(UserError, match="not UTF-8 text"):
        index([str(source)], tmp_path / "out")
    (source / "set-train-002.tar").unlink()
    scans = sorted(folder.glob("*.jsonl"))
    assert len(scans) == 2
    scans[0].write_text(scans[0].read_text()[:-40])
    scans[1].write_text('{"count": 1, "stamp": 3}\n[1]\n')
    assert index([str(source)], tmp_path / "out").manifest == reference


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: m["splits"]["train"]["shards"][0].update(location=None), "does not fit the locations"),
        (lambda m: m.update(version=1), "does not fit the locations"),
        (lambda m: m.update(transform=None), "does not fit the locations"),
        (lambda m: m.update(version=3), "version"),
        (lambda m: m["transform"].update(crop=0), "transform.crop"),
        (lambda m: m["splits"]["train"]["shards"][0].update(location="pipe:cat a"), "not a URL"),
        (lambda m: m["splits"]["train"]["shards"][0].update(location="ftp://host/a"), "unknown scheme"),
        (lambda m: m["splits"]["train"]["shards"][0].update(location="x" * 5000), "location"),
        (lambda m: m["splits"]["train"]["shards"][0].update(location="a\0b"), "contains no file"),
        (lambda m: m["splits"]["train"]["shards"][0].update(location="x" * 4000), "too long"),
        (lambda m: m["splits"]["train"]["shards"][0].update(location="/dev/zero"), "0 of"),
    ],
)
def test_damaged_manifest_is_one_line(source: Path, tmp_path: Path, change: Any, problem: str) -> None:
    index([str(source)], tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError) as error:
        ShardSet.open(tmp_path / "out")
    assert problem in str(error.value) and "\n" not in str(error.value)


def test_manifest_on_a_server_cannot_name_local_files(server: FaultyServer, source: Path, tmp_path: Path) -> None:
    index([str(source)], source / "index")
    path = source / "index" / "manifest.json"
    for location in ("/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:1/a.tar", "../../../a.tar"):
        manifest = json.loads(path.read_text())
        manifest["splits"]["train"]["shards"][0]["location"] = location
        path.write_text(json.dumps(manifest))
        with pytest.raises(UserError, match="only files of the same server|contains no file"):
            ShardSet.open(f"{server.url}/index", DataAccess(tmp_path / "cache"))


def test_image_that_is_damaged_later_is_one_line(source: Path, tmp_path: Path) -> None:
    index([str(source / "set-train-000.tar")], tmp_path / "out", validation_fraction=0)
    tar = source / "set-train-000.tar"
    content = bytearray(tar.read_bytes())
    content[512:1024] = bytes(512)
    tar.write_bytes(content)
    split = ShardSet.open(tmp_path / "out").get_split("train")
    with pytest.raises(
        UserError, match=r"set-train-000\.tar: 00000-set-train-000.*: not an image; index the tars again"
    ):
        split.decode([1, 0])


def test_tars_of_a_relative_folder_are_hashed_once(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tar in source.glob("*.tar"):
        os.utime(tar, (1e9, 1e9))  # a new tar could change without a new time
    index([str(source)], tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    ShardSet.open("out").verify()
    monkeypatch.setattr("featgan.system.verified_hashes.sha256_of", lambda path: pytest.fail(f"{path} is hashed again"))
    for folder in (Path("out"), Path("out").absolute()):
        ShardSet.open(folder).verify()
