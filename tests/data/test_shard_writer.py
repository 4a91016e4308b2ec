"""Shards that webdataset's writer has written keep the bytes that featgan has always written."""

import hashlib
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from featgan.data.packing.plan import PlannedImage, encode_json_line
from featgan.data.packing.writer import ShardWriter
from featgan.data.readers.records import Record
from featgan.data.shards.index import load_index
from tests.helpers.tars import make_tar_member

FROZEN_SHA256 = "badf80431f9adb872471f0ceb7b37db5b654204b1055b6f2d7d3605452346a96"
"""Hash of a shard that was written before webdataset's writer was used."""

keys = st.text("abcdefghijklmnopqrstuvwxyzABC0123456789-_", min_size=1, max_size=80)


def plan_image(key: str, expression: int = 1) -> PlannedImage:
    """Return an image with a key and a class."""
    record = Record(key, Path(f"{key}.jpg"), "train", expression)
    return PlannedImage(key, "train", f"{key}.jpg", record)


def build_reference(items: list[PlannedImage], jpegs: list[bytes]) -> bytes:
    """Return a shard that is written without a library."""
    members = [
        make_tar_member(f"{item.key}.jpg", jpeg) + make_tar_member(f"{item.key}.json", encode_json_line(item.labels))
        for item, jpeg in zip(items, jpegs, strict=True)
    ]
    return b"".join(members) + bytes(1024)


def write_shards(folder: Path, items: list[PlannedImage], jpegs: list[bytes], images_per_shard: int) -> None:
    """Write images with the writer of `featgan pack`."""
    writer = ShardWriter(folder, "train", images_per_shard)
    for item, jpeg in zip(items, jpegs, strict=True):
        writer.add_image(item, jpeg)
    writer.finish_split(("a", "b"), (), ())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(keys, st.binary(max_size=2000)), min_size=1, max_size=7, unique_by=lambda pair: pair[0]))
def test_shards_equal_the_reference_and_the_index_finds_each_image(images: list[tuple[str, bytes]]) -> None:
    items, jpegs = [plan_image(key) for key, _ in images], [jpeg for _, jpeg in images]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder, items, jpegs, 3)
        shards = [path.read_bytes() for path in sorted(folder.glob("*.tar"))]
        for number, content in enumerate(shards):
            part = slice(3 * number, 3 * number + 3)
            assert content == build_reference(items[part], jpegs[part])
        index = load_index(folder / "train.index.npz")
    for number, jpeg in enumerate(jpegs):
        start = index.offset[number]
        assert shards[number // 3][start : start + index.size[number]] == jpeg


def test_a_release_of_the_library_does_not_change_the_shards(tmp_path: Path) -> None:
    jpegs = [bytes(range(256)) * number for number in range(5)]
    write_shards(tmp_path, [plan_image(f"face-{number}", number) for number in range(5)], jpegs, 5)
    assert hashlib.sha256((tmp_path / "train-00000.tar").read_bytes()).hexdigest() == FROZEN_SHA256
