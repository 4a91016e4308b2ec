"""Shards with members or labels that packing does not write: one line each, at low cost."""

import io
import json
import re
import shutil
import tarfile
import time
from pathlib import Path

import pytest

from featgan.data.shards.index import scan_shard
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from tests.conftest import World
from tests.helpers.tars import make_tar_member

MAX_SECONDS = 20.0
"""Time limit for scanning a small shard on a busy machine."""

LINKS = [
    (tarfile.SYMTYPE, "a symbolic link"),
    (tarfile.LNKTYPE, "a hard link"),
    (tarfile.DIRTYPE, "a folder"),
    (tarfile.FIFOTYPE, "a pipe"),
    (tarfile.CHRTYPE, "a device"),
    (tarfile.BLKTYPE, "a device"),
    (tarfile.CONTTYPE, "an entry of another kind"),
    (tarfile.GNUTYPE_SPARSE, "an entry of another kind"),
    (tarfile.XHDTYPE, "an entry of another kind"),
    (tarfile.GNUTYPE_LONGNAME, "an entry of another kind"),
]


def header(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0) -> bytes:
    """Return the header of a tar member."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info.tobuf(tarfile.GNU_FORMAT)


def check_rejected(path: Path, content: bytes, message: str) -> None:
    """Check that a shard with this content is rejected in one line and soon."""
    path.write_bytes(content + bytes(1024))
    started = time.monotonic()
    with pytest.raises(UserError, match=message) as error:
        list(scan_shard(path))
    assert time.monotonic() - started < MAX_SECONDS
    assert str(error.value).startswith(f"{path}: ") and str(error.value).isprintable()


@pytest.mark.parametrize(("kind", "text"), LINKS)
@pytest.mark.parametrize("target", ["a.json", "a.jpg", "missing", "/etc/passwd", "../../a"])
def test_member_that_is_not_a_regular_file_is_named(tmp_path: Path, kind: bytes, text: str, target: str) -> None:
    link = header("a.json", kind, target)
    check_rejected(tmp_path / "s.tar", make_tar_member("a.jpg", b"x") + link, f"a.json is {text}, not a regular file")
    check_rejected(tmp_path / "s.tar", header("a.jpg", kind, target), f"a.jpg is {text}, not a regular file")


@pytest.mark.parametrize("name", ["../a.jpg", "/a.jpg", "..", "a/../b.jpg", "a\x1b[31m.jpg", "a\nb.jpg", ".jpg", "a"])
def test_name_that_packing_does_not_write_is_rejected(tmp_path: Path, name: str) -> None:
    content = make_tar_member(name, b"x") + make_tar_member(name.replace("jpg", "json"), b"{}")
    check_rejected(tmp_path / "s.tar", content, "is not the name of a packed image")


@pytest.mark.parametrize("size", [-1, -512, -(1 << 62), 1 << 40, (1 << 63) - 1])
def test_size_that_does_not_fit_the_file_is_rejected(tmp_path: Path, size: int) -> None:
    image = make_tar_member("a.jpg", b"x")
    check_rejected(tmp_path / "s.tar", header("a.jpg", size=size), "a.jpg ends after the end of the file")
    check_rejected(tmp_path / "s.tar", image + header("a.json", size=size), "a.json ends after the end of the file")


def test_damaged_headers_are_rejected(tmp_path: Path) -> None:
    image = make_tar_member("a.jpg", b"x")
    damaged = bytearray(image)
    damaged[124:136] = b"not a number"
    for content in (b"\xff" * 512, b"x" * 5000, bytes(damaged), image[:300], b"\xe9" + image[1:]):
        check_rejected(tmp_path / "s.tar", content, "not a readable tar file")
    (tmp_path / "s.tar").write_bytes(image)
    with pytest.raises(UserError, match="not a readable tar file"):
        list(scan_shard(tmp_path / "s.tar"))


@pytest.mark.parametrize(
    "labels",
    [b"", b"{", b"[]", b'"text"', b"\xff{}", b'{"a": ' + b"9" * 5000 + b"}", b'{"a":' * 2000 + b"1" + b"}" * 2000],
)
def test_malformed_labels_are_one_line(tmp_path: Path, labels: bytes) -> None:
    content = make_tar_member("a.jpg", b"x") + make_tar_member("a.json", labels)
    check_rejected(tmp_path / "s.tar", content, "a.json")


def test_index_is_rebuilt_only_from_usable_labels(world: World, tmp_path: Path) -> None:
    replacements = {
        "expression": ('"x"', "[1]", '{"a":1}', "70000", "-2", "99", "1e400"),
        "valence": ('"x"', "[1]", "{}", "1e400", "-Infinity"),
        "factors": ('"x"', "[1]", "3"),
    }
    number = 0
    for name, values in replacements.items():
        for value in values:
            number += 1
            shards = tmp_path / str(number)
            shutil.copytree(world.shards.path, shards)
            for path in shards.glob("*.npz"):
                path.unlink()
            replace_first_label(shards, name, value)
            with pytest.raises(UserError) as error:
                ShardSet.open(shards).get_split("train")
            assert str(error.value).isprintable(), (name, value)


def replace_first_label(shards: Path, name: str, value: str) -> None:
    """Write another value of a label of the first image, and the size of the shard in the manifest."""
    path = shards / "train-00000.tar"
    with tarfile.open(path) as tar:
        files = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    labels = json.loads(files[1][1]) | {name: "PLACEHOLDER"}
    files[1] = (files[1][0], json.dumps(labels).replace('"PLACEHOLDER"', value).encode())
    buffer = io.BytesIO()
    for member in files:
        buffer.write(make_tar_member(*member))
    path.write_bytes(buffer.getvalue() + bytes(1024))
    manifest = (shards / "manifest.json").read_text()
    sizes = re.compile(r'("name": "train-00000\.tar",\s*"count": \d+,\s*"bytes": )\d+')
    changed, count = sizes.subn(rf"\g<1>{path.stat().st_size}", manifest)
    assert count == 1
    (shards / "manifest.json").write_text(changed)
