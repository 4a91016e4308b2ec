"""Tests of reading foreign tars: equal to the webdataset library, and safe for damaged and malicious files."""

import io
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_expander

from featgan.data.readers.records import TarImage
from featgan.data.webdataset.samples import ImageReader, TarSample, read_samples
from featgan.errors import UserError
from featgan.system.locations import Location

ALL_LABELS = frozenset({"cls", "json", "txt"})


def make_tar(members: list[tuple[str, bytes]], tar_format: int = tarfile.USTAR_FORMAT) -> bytes:
    """Return a tar with the members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def read_tar(path: Path, content: bytes) -> list[TarSample]:
    path.write_bytes(content)
    with path.open("rb") as file:
        return list(read_samples(file, Location.from_path(path), ALL_LABELS))


def read_with_library(content: bytes) -> list[dict[str, Any]]:
    """Return the samples that webdataset reads."""
    files = tar_file_expander(iter([{"url": "a.tar", "stream": io.BytesIO(content)}]))
    samples = group_by_keys(files)
    return [
        {name: value for name, value in sample.items() if not name.startswith("__") or name == "__key__"}
        for sample in samples
    ]


NAMES = st.sampled_from(
    ["a.jpg", "a.cls", "b.JPG", "x/b.json", "x/b.png", "x.y/c.webp", "d.seg.png", "d.jpeg", "noext"]
)
LONG_NAME = "folder/" * 30 + "ü" * 60


@settings(deadline=None, max_examples=60)
@given(
    names=st.lists(NAMES, unique=True, max_size=9),
    tar_format=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    sizes=st.lists(st.integers(0, 1500), min_size=9, max_size=9),
)
def test_samples_are_those_of_the_library(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], tar_format: int, sizes: list[int]
) -> None:
    names = sorted(names, key=lambda name: name.partition(".")[0])
    prefix = LONG_NAME if tar_format != tarfile.USTAR_FORMAT else ""
    members = [(prefix + name, bytes([number]) * sizes[number]) for number, name in enumerate(names)]
    content = make_tar([("__meta__", b"x"), *members], tar_format)
    expected = read_with_library(content)
    samples = read_tar(tmp_path_factory.mktemp("tars") / "a.tar", content)
    assert [sample.key for sample in samples] == [sample["__key__"] for sample in expected]
    for sample, values in zip(samples, expected, strict=True):
        assert sample.suffixes == values.keys() - {"__key__"}
        assert sample.labels == {name: values[name] for name in ALL_LABELS & values.keys()}
        if sample.suffix:
            assert content[sample.offset : sample.offset + sample.size] == values[sample.suffix]


def test_every_cut_is_an_error(tmp_path: Path) -> None:
    content = make_tar([("a.jpg", b"x" * 700), ("a.cls", b"1"), ("b.jpg", b"y")])
    end = len(content.rstrip(b"\0")) // 512 * 512 + 512
    for length in (*range(0, end + 1, 512), *range(1, end, 311)):
        with pytest.raises(UserError, match=r"a\.tar: (truncated|not a readable)"):
            read_tar(tmp_path / "a.tar", content[:length])
    assert len(read_tar(tmp_path / "a.tar", content[: end + 512])) == 2


def special_tar(kind: bytes, name: str = "a.jpg", size: int = 0, content: bytes = b"") -> bytes:
    """Return a tar with one entry of a kind, followed by a usual file."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, "/etc/passwd"
    return (
        info.tobuf(tarfile.GNU_FORMAT)
        + content.ljust(-(-len(content) // 512) * 512, b"\0")
        + make_tar([("b.jpg", b"y")])
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (special_tar(tarfile.SYMTYPE), "a.jpg is a symbolic link"),
        (special_tar(tarfile.LNKTYPE), "a.jpg is a hard link"),
        (special_tar(tarfile.CHRTYPE), "a.jpg is a device"),
        (special_tar(tarfile.GNUTYPE_SPARSE), "a.jpg is an entry of another kind"),
        (special_tar(tarfile.REGTYPE, size=1 << 40), "at most"),
        (special_tar(tarfile.REGTYPE, "a.cls", size=1 << 40), "labels have at most"),
        (special_tar(tarfile.REGTYPE, "a.bin", size=1 << 40), "truncated"),
        (special_tar(tarfile.GNUTYPE_LONGNAME, size=1 << 40), "extended header"),
        (special_tar(tarfile.GNUTYPE_LONGNAME, size=5000, content=b"a" * 5000), "a name has 5,000 bytes"),
        (special_tar(tarfile.XHDTYPE, size=11, content=b"11 size=-1\n"), "invalid extended header"),
        (special_tar(tarfile.XHDTYPE, size=5, content=b"0 a=b"), "invalid extended header"),
        (special_tar(tarfile.XHDTYPE, size=24, content=b"24 GNU.sparse.realsize=9\n"[:24]), "sparse"),
        (special_tar(tarfile.XHDTYPE, size=9, content=b"9 a=bcde\n")[:1024] * 9, "not a readable tar file"),
        (b"\x1f\x8b" + bytes(2000), "decompress it first"),
        (b"\xff" * 2000, "not a readable tar file"),
        (b"", "truncated at byte 0"),
        (make_tar([("a.jpg", b""), ("a.JPG", b"")]), "occurs twice"),
        (make_tar([("a.jpg", b""), ("a.png", b"")]), "second image"),
        (make_tar([("a.jpg", b""), ("b.jpg", b""), ("a.cls", b"")]), "two samples have the key 'a'"),
    ],
)
def test_unusable_tar_is_one_line(tmp_path: Path, content: bytes, problem: str) -> None:
    tracemalloc.start()
    with pytest.raises(UserError) as error:
        read_tar(tmp_path / "a.tar", content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    message = str(error.value)
    assert problem in message and message.startswith(str(tmp_path / "a.tar")) and "\n" not in message
    assert peak < 60 << 20


@settings(deadline=None, max_examples=150)
@given(position=st.integers(0, 511), value=st.integers(0, 255), fix=st.booleans())
def test_changed_headers_are_read_or_rejected(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int, fix: bool
) -> None:
    content = bytearray(make_tar([("a.jpg", b"x" * 600), ("a.cls", b"1")]))
    content[position] = value
    if fix:
        content[148:156] = b" " * 8
        content[148:156] = b"%06o\0 " % sum(content[:512])
    try:
        samples = read_tar(tmp_path_factory.getbasetemp() / "changed.tar", bytes(content))
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert len(samples) <= 2


def test_images_are_read_again_in_order(tmp_path: Path) -> None:
    members = [(f"{number}.jpg", bytes([number]) * 1000) for number in range(5)]
    samples = read_tar(tmp_path / "a.tar", make_tar(members))
    reader = ImageReader()
    for number in (0, 2, 4, 1):
        sample = samples[number]
        image = TarImage(Location.from_path(tmp_path / "a.tar"), 0, sample.offset, sample.size, sample.crc)
        assert reader.read(image) == members[number][1]
    reader.close()
    (tmp_path / "a.tar").write_bytes(make_tar([(name, content[::-1]) for name, content in members[1:]]))
    with pytest.raises(UserError, match="has changed while it was read"):
        reader.read(image)
    reader.close()
