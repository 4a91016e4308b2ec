"""Tests of foreign shards as a source: sources, labels, classes, splits, and packing from a disk and from servers."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featgan.data.packing.indexing import index_shards
from featgan.data.packing.pack import pack_shards
from featgan.data.readers.records import DatasetListing
from featgan.data.shards.shard_set import ShardSet
from featgan.data.webdataset.listing import list_webdataset
from featgan.data.webdataset.sources import expand_sources
from featgan.errors import UserError
from tests.data.webdataset.test_samples import make_tar
from tests.helpers.servers import FaultyServer, cut_body, serve_folder, serve_s3

Sample = tuple[str, dict[str, bytes]]


def draw_image(number: int, image_format: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, image_format)
    return buffer.getvalue()


def write_tar(path: Path, samples: list[Sample]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(make_tar([(f"{key}.{name}", data) for key, files in samples for name, data in files.items()]))


def make_samples(start: int, count: int) -> list[Sample]:
    """Return samples with a label in cls, and others in json."""
    return [
        (
            f"n/{number:04d}",
            {
                "jpg": draw_image(number),
                "cls": str(number % 3).encode(),
                "txt": [b"cat", b"dog", b"eel"][number % 3],
                "json": json.dumps(
                    {"meta": {"label": ["cat", "dog", "eel"][number % 3], "v": number / 100, "list": [1]}, "s": 1}
                ).encode(),
            },
        )
        for number in range(start, start + count)
    ]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    write_tar(folder / "set-train-000.tar", make_samples(0, 12))
    write_tar(folder / "set-train-001.tar", make_samples(12, 9))
    write_tar(folder / "set-val-000.tar", make_samples(30, 6))
    return folder


def expressions(listing: DatasetListing) -> list[int | None]:
    return [record.expression for record in listing.records]


def test_records_keep_the_order_and_have_splits_and_labels(source: Path) -> None:
    listing = list_webdataset([str(source)])
    assert expressions(listing) == [number % 3 for number in (*range(21), *range(30, 36))]
    assert [record.split for record in listing.records] == ["train"] * 21 + ["validation"] * 6
    assert listing.classes == ("0", "1", "2") and listing.records[0].path == Path("set-train-000.tar/n/0000.jpg")
    assert len({record.key for record in listing.records}) == 27


@pytest.mark.parametrize("label", ["txt", "json:meta.label", "expression=json:meta.label,valence=json:meta.v"])
def test_labels_in_other_places(source: Path, label: str) -> None:
    listing = list_webdataset([str(source)], label)
    assert listing.classes == ("cat", "dog", "eel")
    assert expressions(listing)[:4] == [0, 1, 2, 0]
    assert [record.valence for record in listing.records[:2]] == ([0.0, 0.01] if "valence" in label else [None, None])


def test_attributes_identities_and_no_labels(source: Path) -> None:
    listing = list_webdataset([str(source)], "attributes.s=json:s,identity=txt")
    assert listing.records[1].attributes == {"s": 1} and listing.records[1].identity == "dog"
    assert expressions(list_webdataset([str(source)], "none")) == [None] * 27


@pytest.mark.parametrize(
    "classes",
    ["cat,dog,eel", "names.txt", "list.json", "object.json"],
)
def test_names_of_classes(source: Path, monkeypatch: pytest.MonkeyPatch, classes: str) -> None:
    monkeypatch.chdir(source)
    Path("names.txt").write_text("cat\ndog\neel\n")
    Path("list.json").write_text('["cat", "dog", "eel"]')
    Path("object.json").write_text('{"0": "cat", "1": "dog", "2": "eel"}')
    listing = list_webdataset(["."], classes=classes)
    assert listing.classes == ("cat", "dog", "eel") and expressions(listing)[:3] == [0, 1, 2]


@pytest.mark.parametrize(
    ("label", "content", "problem"),
    [
        ("json:a", {"json": b'{"a": [1]}'}, "k.json: a is a list, not a class"),
        ("json:a.b", {"json": b'{"a": [1]}'}, "a part of it is a list"),
        ("json:a", {"json": b'{"a": true}'}, "a is true, not a class"),
        ("json:a", {"json": b'{"a": 1.5}'}, "a is 1.5, not a class"),
        ("valence=json:a", {"json": b'{"a": NaN}'}, "a is nan, not a number"),
        ("json:a", {"json": b"{"}, "k.json: not valid JSON"),
        ("json:a", {"json": b"[" * 1000}, "k.json: "),
        ("txt", {"txt": b"a caption " * 30}, "it is a caption and not a class"),
        ("txt", {"txt": b"\xff\xfe"}, "k.txt: not UTF-8 text"),
        ("valence=json:a", {"json": b'{"a": "x"}'}, "a is a text, not a number"),
        ("valence=json:a", {"json": b'{"a": 2}'}, "a is 2; valence is between -1 and 1"),
        ("attributes.x=json:a", {"json": b'{"a": 3}'}, "an attribute is 0, 1, true, false or null"),
        ("color=cls", {}, "not a label; write cls"),
        ("json", {}, "not a label; write cls"),
        ("cls,expression=txt", {}, "contains a label twice"),
        ("other", {}, "no sample has this label"),
    ],
)
def test_unexpected_labels_are_one_line(tmp_path: Path, label: str, content: dict[str, bytes], problem: str) -> None:
    write_tar(tmp_path / "a.tar", [("k", {"jpg": draw_image(0), **content})])
    with pytest.raises(UserError) as error:
        list_webdataset([str(tmp_path / "a.tar")], label)
    assert problem in str(error.value) and "\n" not in str(error.value)


def test_unknown_labels_are_missing(tmp_path: Path) -> None:
    values = [b'{"a": null}', b'{"a": -1}', b'{"a": ""}', b"{}", b'{"a": 7}', b'{"a": "7"}', b'{"a": 7.0}']
    samples = [(f"k{number}", {"jpg": draw_image(0), "json": value}) for number, value in enumerate(values)]
    write_tar(tmp_path / "a.tar", [*samples, ("last", {"jpg": draw_image(0)})])
    listing = list_webdataset([str(tmp_path / "a.tar")], "json:a")
    assert expressions(listing) == [None] * 4 + [0] * 3 + [None] and listing.classes == ("7",)


def names_of(sources: list[str], validation: str = "") -> list[tuple[str, str]]:
    return [(tar.location.name, tar.split) for tar in expand_sources(sources, validation)]


def test_sources(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [("set-train-000.tar", "train"), ("set-train-001.tar", "train"), ("set-val-000.tar", "validation")]
    monkeypatch.chdir(source.parent)
    assert names_of([str(source)]) == names_of(["source"]) == expected
    assert names_of(["source/set-train-{000..001}.tar", "source/set-val-000.tar"]) == expected
    assert names_of(["source/set-{train-000,train-001,val-000}.tar"]) == expected
    assert names_of(["source"], "*-001.tar")[1:] == [("set-train-001.tar", "validation"), ("set-val-000.tar", "train")]
    files = {"train": ["set-val-000.tar"], "validation": ["set-train-000.tar"]}
    info = {"splits": {name: {"filenames": names, "num_samples": 6} for name, names in files.items()}}
    (source / "_info.json").write_text(json.dumps(info))
    listed = [("set-val-000.tar", "train"), ("set-train-000.tar", "validation")]
    assert names_of(["source"]) == names_of(["source/_info.json"]) == listed
    (source / "wids.json").write_text(json.dumps({"shardlist": [{"url": "set-val-000.tar", "nsamples": 6}]}))
    assert names_of(["source/wids.json"]) == [("set-val-000.tar", "validation")]


@pytest.mark.parametrize("name", ["a\udcff", "a\nb", "a\x1b[31m", "é b", "../../a", "/a", "d/" * 400 + "a"])
@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_unusual_names_are_packed_and_indexed(tmp_path: Path, name: str, tar_format: int) -> None:
    members = [(f"{name}.jpg", draw_image(0)), (f"{name}.cls", b"1"), ("other.jpg", draw_image(1))]
    (tmp_path / "a.tar").write_bytes(make_tar(members, tar_format))
    packed = pack_shards("webdataset", str(tmp_path / "a.tar"), tmp_path / "packed", image_size=16, workers=1)
    indexed = index_shards([str(tmp_path / "a.tar")], tmp_path / "index", image_size=16, workers=1)
    for summary in (packed, indexed):
        split = ShardSet.open(summary.out).get_split("train")
        assert sorted(split.expression.tolist()) == [-1, 0] and split.decode([0, 1]).shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("missing", "no such file or folder"),
        ("a-{0..9999999999}.tar", "names more than 30,000 tars"),
        ("a-{0..999}{0..999}.tar", "names more than 30,000 tars"),
        ("a-{0..9999999999\n}.tar", "names more than 30,000 tars"),
        (f"a-{{1..{'9' * 5000}}}.tar", "names more than 30,000 tars"),
        ("{a,b\\}" * 20 + ".tar", "names more than 30,000 tars"),
        ("a-{0..10}-{a..zz}.tar", "no such file or folder"),
        ("a" * 300 + "-{0..9}.tar", "no such file or folder"),
        ("a" * 300, "no such file or folder"),
        ("a-{{0..9}}.tar", "braces inside braces"),
        ("a.tar.gz", "compressed tars"),
        ("pipe:cat a.tar", "not a URL"),
        ("ftp://host/a.tar", "unknown scheme"),
        ("a.tar::b.tar", "no such file or folder"),
        ("empty", "contains no .tar files"),
        ("bad.json", "not a list of shards"),
        ("broken.json", "not valid JSON"),
    ],
)
def test_unusable_sources_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("bad.json").write_text('{"splits": {"train": {"filenames": [5]}}}')
    Path("broken.json").write_text("{")
    with pytest.raises(UserError) as error:
        expand_sources([text])
    assert problem in str(error.value) and "\n" not in str(error.value)


def test_tar_that_is_listed_twice_is_an_error(source: Path) -> None:
    with pytest.raises(UserError, match="is listed twice"):
        expand_sources([str(source), str(source / "set-val-000.tar")])
    with pytest.raises(UserError, match="no tar has such a name"):
        expand_sources([str(source)], "x*")


def test_list_behind_a_url_names_tars_of_the_same_server_only(source: Path) -> None:
    info = {"splits": {"train": {"filenames": ["/etc/passwd"]}}}
    (source / "_info.json").write_text(json.dumps(info))
    with serve_folder(source) as server, pytest.raises(UserError, match="only files of the same server"):
        expand_sources([server.url])


def pack(sources: list[str], out: Path, **options: Any) -> dict[str, bytes]:
    """Pack sources and return the content of the files."""
    pack_shards("webdataset", sources, out, image_size=16, workers=1, images_per_shard=8, **options)
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.suffix in (".tar", ".npz")}


def test_packing_gives_the_same_shards_twice_with_all_labels(source: Path, tmp_path: Path) -> None:
    files = pack([str(source)], tmp_path / "one")
    assert files == pack([str(source / "set-{train-000,train-001,val-000}.tar")], tmp_path / "two")
    summary = pack_shards("webdataset", str(source), tmp_path / "one", image_size=16, images_per_shard=8)
    assert summary.already_packed
    shards = ShardSet.open(tmp_path / "one")
    assert shards.get_split("train").expression.tolist() == [number % 3 for number in range(21)]
    assert shards.get_split("validation").expression.tolist() == [number % 3 for number in range(30, 36)]
    assert shards.manifest.validation_split == "source"
    assert not list(tmp_path.glob(".*"))


def test_validation_split_is_created_and_images_are_sampled(source: Path, tmp_path: Path) -> None:
    sources = [str(source / "set-train-{000..001}.tar")]
    pack(sources, tmp_path / "created", validation_fraction=0.2)
    manifest = ShardSet.open(tmp_path / "created").manifest
    assert manifest.validation_split == "created" and manifest.splits["validation"].count == 3
    pack(sources, tmp_path / "sample", max_images=10, validation_fraction=0)
    assert ShardSet.open(tmp_path / "sample").manifest.splits["train"].count == 10


def test_other_image_formats_and_unusable_images(tmp_path: Path) -> None:
    samples: list[Sample] = [(f"{number:03d}", {"png": draw_image(number, "PNG")}) for number in range(150)]
    samples += [(f"w{number}", {"webp": draw_image(number, "WEBP")}) for number in range(150)]
    write_tar(tmp_path / "a.tar", [*samples, ("text", {"jpg": b"not an image"}), ("none", {"cls": b"1"})])
    pack([str(tmp_path / "a.tar")], tmp_path / "out", validation_fraction=0)
    manifest = ShardSet.open(tmp_path / "out").manifest
    assert manifest.splits["train"].count == 300
    assert manifest.skipped == {"missing file": 1, "not an image": 1}
    write_tar(tmp_path / "b.tar", [("text", {"jpg": b"not an image"}), ("a", {"jpg": draw_image(0)})])
    with pytest.raises(UserError, match=r"b\.tar/text\.jpg: not an image.*at most 1% may be unusable"):
        pack([str(tmp_path / "b.tar")], tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def damage_tar(path: Path, damage: str) -> None:
    """Replace the content of a tar by one that cannot be packed."""
    samples = make_samples(0, 3)
    if damage == "repeated":
        samples.append(samples[0])
    if damage == "label":
        samples[2][1]["cls"] = b"a caption " * 30
    if damage == "image":
        samples[2][1]["jpg"] = b"not an image"
    write_tar(path, samples)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("repeated", "two samples have the key 'n/0000'"),
        ("label", "n/0002.cls has more than 200 bytes"),
        ("image", "n/0002.jpg: not an image"),
        ("cut", "truncated at byte 3,000"),
    ],
)
def test_source_that_cannot_be_packed_leaves_nothing_behind(
    source: Path, tmp_path: Path, damage: str, problem: str
) -> None:
    damage_tar(source / "set-train-001.tar", damage)
    with pytest.raises(UserError) as error:
        pack([str(source)], tmp_path / "out")
    message = str(error.value)
    assert problem in message and "set-train-001.tar" in message and "\n" not in message
    assert list(tmp_path.iterdir()) == [source] and len(list(source.iterdir())) == 3


@pytest.fixture
def server(source: Path) -> Iterator[FaultyServer]:
    files = {"train": ["set-train-000.tar", "set-train-001.tar"], "validation": ["set-val-000.tar"]}
    info = {"splits": {name: {"filenames": names} for name, names in files.items()}}
    (source / "_info.json").write_text(json.dumps(info))
    with serve_folder(source) as http_server:
        yield http_server


def test_packing_from_a_server_equals_packing_from_a_disk(
    server: FaultyServer, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("featgan.data.remote.outages.sleep", lambda seconds: None)
    local = pack([str(source)], tmp_path / "local")
    server.fail("/set-train-001.tar", cut_body(3000), cut_body(3000))
    pattern = f"{server.url}/set-train-{{000..001}}.tar"
    assert pack([pattern, f"{server.url}/set-val-000.tar?sig=secret"], tmp_path / "http") == local
    assert "secret" not in (tmp_path / "http" / "manifest.json").read_text()
    assert pack([server.url], tmp_path / "info") == local
    assert not [path for path in tmp_path.rglob("set-*") if path.parent != source]


def test_missing_tar_on_a_server_is_one_line(server: FaultyServer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set-train-002\.tar: no such file on the server; check the URL$"):
        pack([f"{server.url}/set-train-{{000..002}}.tar"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folder_behind_a_url_needs_a_list(source: Path) -> None:
    with serve_folder(source) as server, pytest.raises(UserError) as error:
        expand_sources([f"{server.url}/"])
    assert str(error.value).endswith("contains no _info.json; give the tars, or a pattern such as a-{000..127}.tar")


def test_packing_from_object_storage(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_s3() as s3:
        s3.put_folder("foreign", source)
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        packed = pack(["s3://foreign/set-{train-000,train-001,val-000}.tar"], tmp_path / "s3")
    assert packed == pack([str(source)], tmp_path / "local")


def test_options_and_sources_of_other_layouts(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--layout-option color: not an option of layout webdataset"):
        pack_shards("webdataset", str(source), tmp_path / "out", layout_options={"color": "red"})
    with pytest.raises(UserError, match="layout folder has one folder as source"):
        pack_shards("folder", ["a", "b"], tmp_path / "out")
    with pytest.raises(UserError, match="https://host/a: is a URL"):
        pack_shards("folder", ["https://host/a"], tmp_path / "out")


def test_missing_file_of_class_names_is_found_before_a_tar_is_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"names\.txt: no such file; check --layout-option classes"):
        list_webdataset([str(tmp_path / "missing.tar")], classes="names.txt")


def test_error_for_an_unknown_class_lists_few_names(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("k", {"jpg": draw_image(0), "cls": b"999"})])
    (tmp_path / "names.txt").write_text("\n".join(f"name {number}" for number in range(500)))
    with pytest.raises(UserError, match=r"unknown class '999'; use one of name 0, .*name 9 and 490 others"):
        list_webdataset([str(tmp_path / "a.tar")], classes=str(tmp_path / "names.txt"))


def test_samples_without_labels_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tar(tmp_path / "a.tar", [("k", {"jpg": draw_image(0)})])
    list_webdataset([str(tmp_path / "a.tar")], "none")
    assert not caplog.records
    list_webdataset([str(tmp_path / "a.tar")])
    assert "no sample has a cls file" in caplog.text


def test_pattern_of_the_shell_in_quotes_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"remove the quotes around \*, which the shell expands"):
        list_webdataset([str(tmp_path / "*.tar")])
