"""Tests of reading shards: images and labels by row, several processes, and corrupted folders."""

import io
import json
import os
import pickle
import tarfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from featgan.data.packing import pack as pack_module
from featgan.data.packing.pack import pack_shards
from featgan.data.readers.records import DatasetListing, Record
from featgan.data.shards import index_checks
from featgan.data.shards import shard_set as shard_set_module
from featgan.data.shards.index import SplitIndex
from featgan.data.shards.index_checks import is_valid_index
from featgan.data.shards.shard_set import ShardSet
from featgan.data.shards.split import Split
from featgan.errors import UserError
from featgan.system.files import sha256_of

COUNT = 23
SIZE = 16


def make_image(number: int) -> np.ndarray:
    """Return a uniform image whose color encodes its number."""
    return np.full((SIZE, SIZE, 3), (10 * number, 255 - 10 * number, 5 * number), np.uint8)


def make_record(number: int, folder: Path) -> Record:
    return Record(
        key=f"image{number:02d}",
        path=folder / f"{number:02d}.png",
        split="validation" if number >= 18 else "train",
        expression=None if number == 3 else number % 2,
        valence=number / 100 if number % 2 else None,
        arousal=-number / 100,
        attributes={"Smiling": number % 2} if number != 4 else None,
        factors={"brow": number / 10},
    )


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with 23 images in shards of 5: four training shards and one validation shard."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(COUNT):
        Image.fromarray(make_image(number)).save(source / f"{number:02d}.png")
    listing = DatasetListing([make_record(number, source) for number in range(COUNT)], ("calm", "glad"), Counter())
    monkeypatch.setattr(pack_module, "read_dataset", lambda *arguments: listing)
    pack_shards("test", source, tmp_path / "shards", image_size=SIZE, images_per_shard=5, workers=1)
    return tmp_path / "shards"


def image_numbers(split: Split) -> list[int]:
    return [int(key[-2:]) for key in split.keys_of(range(len(split)))]


def test_shard_set_describes_its_content(shards: Path) -> None:
    shard_set = ShardSet.open(shards)
    assert shard_set.split_names == ("train", "validation")
    assert (shard_set.image_size, shard_set.classes) == (SIZE, ("calm", "glad"))
    assert (shard_set.attribute_names, shard_set.factor_names) == (("Smiling",), ("brow",))
    train = shard_set.get_split("train")
    assert len(train) == 18
    assert train.shard_names == [f"train-{number:05d}" for number in range(4)]
    assert train.shard_counts == [5, 5, 5, 3]
    assert sorted(image_numbers(train)) == list(range(18))
    assert len(shard_set.get_split("validation")) == 5
    shard_set.verify()


def test_labels_are_arrays_in_row_order(shards: Path) -> None:
    train = ShardSet.open(shards).get_split("train")
    for row, number in enumerate(image_numbers(train)):
        assert train.expression[row] == (-1 if number == 3 else number % 2)
        assert train.valence[row] == pytest.approx(number / 100 if number % 2 else np.nan, nan_ok=True)
        assert train.arousal[row] == pytest.approx(-number / 100)
        assert train.attributes[row].tolist() == [-1 if number == 4 else number % 2]
        assert train.factors[row].tolist() == pytest.approx([number / 10])
    assert [array.dtype.str[1:] for array in (train.expression, train.attributes, train.valence)] == ["i2", "i1", "f4"]


def test_images_are_in_the_order_of_the_rows(shards: Path) -> None:
    train = ShardSet.open(shards).get_split("train")
    rows = [17, 0, 6, 6, 11]
    images = train.decode(rows)
    assert (images.shape, images.dtype) == ((5, 3, SIZE, SIZE), torch.uint8)
    for image, row in zip(images, rows, strict=True):
        expected = torch.from_numpy(make_image(image_numbers(train)[row])).permute(2, 0, 1)
        assert (image.int() - expected.int()).abs().max() <= 2
    assert train.decode([]).shape == (0, 3, SIZE, SIZE)
    assert Image.open(io.BytesIO(train.read_jpeg(3))).size == (SIZE, SIZE)


class SplitImages(Dataset[Tensor]):
    """The images of a split, one per item."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, row: int) -> Tensor:
        return self.split.decode([row])[0]


def test_worker_processes_read_the_same_images(shards: Path) -> None:
    train = ShardSet.open(shards).get_split("train")
    expected = train.decode(range(len(train)))  # this opens the files before the workers start
    loader = DataLoader(SplitImages(train), batch_size=4, num_workers=2, multiprocessing_context="fork")
    assert torch.equal(torch.cat(list(loader)), expected)


def test_open_files_are_not_pickled(shards: Path) -> None:
    train = ShardSet.open(shards).get_split("train")
    expected = train.decode([0, 9])
    copy = pickle.loads(pickle.dumps(train))
    assert copy.reader.files == {}
    assert torch.equal(copy.decode([0, 9]), expected)


def test_number_of_open_files_is_bounded(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featgan.data.shards.reading.MAX_OPEN_FILES", 2)
    train = ShardSet.open(shards).get_split("train")
    train.decode(range(18))
    assert [*train.reader.files] == [2, 3]
    monkeypatch.setattr("featgan.data.shards.reading.MAX_OPEN_FILES", 5)
    train.decode(range(18))
    assert [*train.reader.files] == [2, 3, 0, 1]


def test_fingerprint_identifies_the_images(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprint = ShardSet.open(shards).fingerprint
    source = tmp_path / "source"
    records = [make_record(number, source) for number in range(COUNT)]
    monkeypatch.setattr(
        pack_module, "read_dataset", lambda *arguments: DatasetListing(records, ("calm", "glad"), Counter())
    )
    pack_shards("test", source, tmp_path / "same", image_size=SIZE, images_per_shard=5, workers=1)
    assert ShardSet.open(tmp_path / "same").fingerprint == fingerprint
    pack_shards("test", source, tmp_path / "other", image_size=SIZE, images_per_shard=5, quality=60, workers=1)
    assert ShardSet.open(tmp_path / "other").fingerprint != fingerprint


def error_message(error: pytest.ExceptionInfo[UserError]) -> str:
    """Return the message, which must be one line."""
    assert "\n" not in str(error.value)
    return str(error.value)


def test_error_for_a_missing_folder_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing: no such folder; .*featgan pack") as error:
        ShardSet.open(tmp_path / "missing")
    assert error_message(error)


def test_error_for_another_folder_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a shard folder .*featgan pack"):
        ShardSet.open(tmp_path)
    with tarfile.open(tmp_path / "000.tar", "w"):
        pass
    with pytest.raises(UserError, match=r"tar files without a manifest\.json; .*featgan pack"):
        ShardSet.open(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not valid JSON"), ("[]", "corrupted"), ('{"format": "other"}', "format"), ("", "not valid JSON")],
)
def test_error_for_a_corrupted_manifest_is_one_line(shards: Path, content: str, message: str) -> None:
    (shards / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=f"manifest.json: .*{message}.*pack the images again") as error:
        ShardSet.open(shards)
    assert error_message(error)


def test_manifest_cannot_name_files_outside_the_folder(shards: Path) -> None:
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"][0]["name"] = "../source/00.png"
    (shards / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest\.json: corrupted \(splits\.train\.shards\.0\.name"):
        ShardSet.open(shards)


def test_error_names_a_shard_of_the_wrong_size(shards: Path) -> None:
    path = shards / "train-00002.tar"
    content = path.read_bytes()
    path.write_bytes(content[:-512])
    with pytest.raises(UserError, match=r"train-00002\.tar: the shard is truncated") as error:
        ShardSet.open(shards)
    assert error_message(error)
    path.write_bytes(content + bytes(512))
    with pytest.raises(UserError, match=r"train-00002\.tar: the shard has \d+ bytes, not \d+"):
        ShardSet.open(shards)
    path.unlink()
    with pytest.raises(UserError, match=r"train-00002\.tar: the shard is missing"):
        ShardSet.open(shards)


def test_verify_detects_a_shard_with_changed_content(shards: Path) -> None:
    path = shards / "validation-00000.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    shard_set = ShardSet.open(shards)
    with pytest.raises(UserError, match=r"validation-00000\.tar: its checksum does not match"):
        shard_set.verify()


def test_error_names_a_shard_truncated_after_opening(shards: Path) -> None:
    train = ShardSet.open(shards).get_split("train")
    path = shards / "train-00003.tar"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"train-00003\.tar: the shard ends too early"):
        train.decode([17])
    path.unlink()
    train.reader.files.clear()
    with pytest.raises(UserError, match=r"train-00003\.tar: the shard is missing"):
        train.decode([17])


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 not an index"])
def test_missing_or_invalid_index_is_rebuilt(shards: Path, content: bytes | None) -> None:
    path = shards / "train.index.npz"
    before = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    train = ShardSet.open(shards).get_split("train")
    assert path.read_bytes() == before
    assert len(train.decode(range(18))) == 18


def test_index_that_cannot_be_saved_is_used(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_permission_error(path: Path, data: bytes) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("featgan.data.shards.shard_set.atomic_write", raise_permission_error)
    (shards / "train.index.npz").unlink()
    assert len(ShardSet.open(shards).get_split("train")) == 18


def age_index(shards: Path) -> Path:
    """Set the modification time of the training index to a minute ago, so that it is added to the memo."""
    path = shards / "train.index.npz"
    earlier = path.stat().st_mtime_ns - 60 * 10**9
    os.utime(path, ns=(earlier, earlier))
    return path


@pytest.fixture
def checked_indexes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which the name of every index is added when its content is read to check it."""
    names: list[str] = []

    def record_check(path: Path) -> str:
        names.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(shard_set_module, "sha256_of", record_check)
    return names


def test_unchanged_index_is_checked_once(shards: Path, checked_indexes: list[str]) -> None:
    path = age_index(shards)
    expected = ShardSet.open(shards).get_split("train").decode(range(18))
    assert checked_indexes == ["train.index.npz"]
    ShardSet.open(shards).verify()  # adds the shards to the same memo
    train = ShardSet.open(shards).get_split("train")
    assert checked_indexes == ["train.index.npz"] and torch.equal(train.decode(range(18)), expected)
    content, changed = path.read_bytes(), bytearray(path.read_bytes())
    changed[len(changed) // 2] ^= 1
    path.write_bytes(changed)
    assert torch.equal(ShardSet.open(shards).get_split("train").decode(range(18)), expected)
    assert path.read_bytes() == content, "a changed index is rebuilt"


def test_index_is_checked_again_with_another_manifest(shards: Path) -> None:
    age_index(shards)
    ShardSet.open(shards).get_split("train")
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["classes"] = ["calm"]
    for split in manifest["splits"].values():
        del split["classes"]["glad"]
    (shards / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="the index does not match the shards"):
        ShardSet.open(shards).get_split("train")


@pytest.mark.parametrize("changes", [{"offset": 1 << 40}, {"offset": -1}, {"size": 1 << 40}, {"size": 0}])
def test_position_outside_the_shard_is_rejected_at_read(shards: Path, changes: dict[str, int]) -> None:
    train = ShardSet.open(shards).get_split("train")
    for name, value in changes.items():
        column = np.array(getattr(train.index, name))
        column[7] = value
        train.index = replace(train.index, **{name: column})
    assert len(train.decode([6, 8])) == 2
    with pytest.raises(UserError, match=r"train\.index\.npz: the index does not match the shards"):
        train.decode([6, 7])


def test_chunks_of_an_index_are_checked_with_their_shards(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_checks, "CHUNK_ROWS", 4)
    shard_set = ShardSet.open(shards)
    index, split = shard_set.get_split("train").index, shard_set.manifest.splits["train"]

    def is_valid_content(index: SplitIndex) -> bool:
        return is_valid_index(lambda: index, shard_set.manifest, split)

    assert is_valid_content(index)
    for row, shard in ((0, 0), (9, 1), (17, 3)):
        for value, is_valid in ((split.shards[shard].bytes - int(index.size[row]), True), (1 << 40, False)):
            offset = np.array(index.offset)
            offset[row] = value
            changed = replace(index, offset=offset)
            assert is_valid_content(changed) == is_valid, (row, value)
        keys = np.array(index.keys)
        keys[row] = b"\xff"
        assert not is_valid_content(replace(index, keys=keys))
    assert not is_valid_content(index.slice_rows(0, 17))


def test_missing_images_are_detected_when_the_index_is_rebuilt(shards: Path) -> None:
    (shards / "train.index.npz").unlink()
    path = shards / "train-00001.tar"
    with tarfile.open(path) as tar:
        third = tar.getmembers()[4]
    content = path.read_bytes()
    # A tar file ends at a header of zeros, without an error.
    path.write_bytes(content[: third.offset] + bytes(len(content) - third.offset))
    with pytest.raises(UserError, match=r"train-00001\.tar: the shard contains 2 of 5 images"):
        ShardSet.open(shards).get_split("train")


def test_missing_split_is_an_error(shards: Path) -> None:
    with pytest.raises(UserError, match="no split 'test'; the shards contain train, validation"):
        ShardSet.open(shards).get_split("test")


def overwrite_image(split: Split, row: int, content: bytes) -> None:
    """Overwrite an image in its shard; the size of the shard does not change."""
    assert len(content) <= split.index.size[row]
    path = Path(split.reader.location(int(split.shard_of([row])[0])))
    with path.open("r+b") as file:
        file.seek(int(split.index.offset[row]))
        file.write(content + bytes(int(split.index.size[row]) - len(content)))


def jpeg_bytes(width: int, height: int, quality: int = 1) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def test_error_names_the_shard_and_key_of_a_corrupted_image(shards: Path) -> None:
    train = ShardSet.open(shards).get_split("train")
    jpeg = train.read_jpeg(7)
    location = rf"train-00001\.tar: {train.keys_of([7])[0]}\.jpg: "
    for content, message in (
        (b"\x89PNG", "not a JPEG, but 16 x 16 pixels were packed"),
        (b"\xff\xd8\xff\xc4", "not a JPEG"),
        (jpeg_bytes(8, 16), "8 x 16 pixels, but"),
        (jpeg[:400], "the JPEG is corrupted"),
        (jpeg_bytes(16, 16).replace(b"\x00\x10\x00\x10", b"\xff\xff\xff\xff"), "65535 x 65535 pixels, but"),
    ):
        overwrite_image(train, 7, content)
        with pytest.raises(UserError, match=location + message) as error:
            train.decode([6, 7])
        assert error_message(error)


def test_gray_jpegs_become_rgb(shards: Path) -> None:
    train = ShardSet.open(shards).get_split("train")
    overwrite_image(train, 7, jpeg_bytes(16, 16))
    assert train.decode([7]).shape == (1, 3, SIZE, SIZE)


def test_threads_share_the_open_files(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = ShardSet.open(shards).get_split("train")
    monkeypatch.setattr("featgan.data.shards.reading.MAX_OPEN_FILES", 1)
    rows = np.random.default_rng(0).integers(0, len(train), 300)
    with ThreadPoolExecutor(8) as pool:
        actual = list(pool.map(lambda row: train.read_jpeg(int(row)), rows))
    assert actual == [train.read_jpeg(int(row)) for row in rows] and len(train.reader.files) <= 8
