"""Reading shards: images and labels by row, from any process; and every way a folder can be damaged."""

import io
import json
import pickle
import tarfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from featgan.data.packing import pack as pack_module
from featgan.data.packing.pack import pack
from featgan.data.readers.registry import Layout, Record
from featgan.data.shards.shard_set import ShardSet, Split
from featgan.errors import UserError

COUNT = 23
SIZE = 16


def draw(number: int) -> np.ndarray:
    """A flat image whose colour tells its number."""
    return np.full((SIZE, SIZE, 3), (10 * number, 255 - 10 * number, 5 * number), np.uint8)


def label(number: int, folder: Path) -> Record:
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
    """23 images in shards of 5: four of train, one of validation."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(COUNT):
        Image.fromarray(draw(number)).save(source / f"{number:02d}.png")
    layout = Layout([label(number, source) for number in range(COUNT)], ("calm", "glad"), Counter())
    monkeypatch.setattr(pack_module, "read_layout", lambda name, source: layout)
    pack("mine", source, tmp_path / "shards", image_size=SIZE, images_per_shard=5, workers=1)
    return tmp_path / "shards"


def numbers(split: Split) -> list[int]:
    return [int(key[-2:]) for key in split.keys]


def test_a_shard_set_tells_what_it_holds(shards: Path) -> None:
    opened = ShardSet.open(shards)
    assert opened.split_names == ("train", "validation")
    assert (opened.image_size, opened.classes) == (SIZE, ("calm", "glad"))
    assert (opened.attribute_names, opened.factor_names) == (("Smiling",), ("brow",))
    train = opened.split("train")
    assert len(train) == 18
    assert train.shard_names == [f"train-{number:05d}" for number in range(4)]
    assert train.shard_counts == [5, 5, 5, 3]
    assert sorted(numbers(train)) == list(range(18))
    assert len(opened.split("validation")) == 5
    opened.verify()


def test_labels_are_arrays_in_row_order(shards: Path) -> None:
    train = ShardSet.open(shards).split("train")
    for row, number in enumerate(numbers(train)):
        assert train.expression[row] == (-1 if number == 3 else number % 2)
        assert train.valence[row] == pytest.approx(number / 100 if number % 2 else np.nan, nan_ok=True)
        assert train.arousal[row] == pytest.approx(-number / 100)
        assert train.attributes[row].tolist() == [-1 if number == 4 else number % 2]
        assert train.factors[row].tolist() == pytest.approx([number / 10])
    assert [array.dtype.str[1:] for array in (train.expression, train.attributes, train.valence)] == ["i2", "i1", "f4"]


def test_images_come_in_the_order_of_the_rows(shards: Path) -> None:
    train = ShardSet.open(shards).split("train")
    rows = [17, 0, 6, 6, 11]
    images = train.decode(rows)
    assert (images.shape, images.dtype) == ((5, 3, SIZE, SIZE), torch.uint8)
    for image, row in zip(images, rows, strict=True):
        expected = torch.from_numpy(draw(numbers(train)[row])).permute(2, 0, 1)
        assert (image.int() - expected.int()).abs().max() <= 2
    assert train.decode([]).shape == (0, 3, SIZE, SIZE)
    assert Image.open(io.BytesIO(train.read_jpeg(3))).size == (SIZE, SIZE)


class Images(Dataset[Tensor]):
    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, row: int) -> Tensor:
        return self.split.decode([row])[0]


def test_worker_processes_read_the_same_images(shards: Path) -> None:
    train = ShardSet.open(shards).split("train")
    expected = train.decode(range(len(train)))  # the files are open in this process before the workers start
    loader = DataLoader(Images(train), batch_size=4, num_workers=2, multiprocessing_context="fork")
    assert torch.equal(torch.cat(list(loader)), expected)


def test_open_files_do_not_travel_to_spawned_processes(shards: Path) -> None:
    train = ShardSet.open(shards).split("train")
    expected = train.decode([0, 9])
    copy = pickle.loads(pickle.dumps(train))
    assert copy.reader.files == {}
    assert torch.equal(copy.decode([0, 9]), expected)


def test_the_number_of_open_files_is_bounded(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featgan.data.shards.shard_set.MAX_OPEN_FILES", 2)
    train = ShardSet.open(shards).split("train")
    train.decode(range(18))
    assert [*train.reader.files] == [2, 3]
    monkeypatch.setattr("featgan.data.shards.shard_set.MAX_OPEN_FILES", 5)
    train.decode(range(18))
    assert [*train.reader.files] == [2, 3, 0, 1]


def test_the_fingerprint_is_of_the_images(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprint = ShardSet.open(shards).fingerprint
    source = tmp_path / "source"
    records = [label(number, source) for number in range(COUNT)]
    monkeypatch.setattr(pack_module, "read_layout", lambda name, source: Layout(records, ("calm", "glad"), Counter()))
    pack("mine", source, tmp_path / "same", image_size=SIZE, images_per_shard=5, workers=1)
    assert ShardSet.open(tmp_path / "same").fingerprint == fingerprint
    pack("mine", source, tmp_path / "other", image_size=SIZE, images_per_shard=5, quality=60, workers=1)
    assert ShardSet.open(tmp_path / "other").fingerprint != fingerprint


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_folder_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothere: no such folder; .*featgan pack") as error:
        ShardSet.open(tmp_path / "nothere")
    assert one_line(error)


def test_a_foreign_folder_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"these are no shards; .*featgan pack"):
        ShardSet.open(tmp_path)
    with tarfile.open(tmp_path / "000.tar", "w"):
        pass
    with pytest.raises(UserError, match=r"tar files without a manifest\.json; .*featgan pack"):
        ShardSet.open(tmp_path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [("{", "damaged"), ("[]", "damaged"), ('{"format": "other"}', "format"), ("", "damaged")],
)
def test_a_damaged_manifest_is_one_line(shards: Path, content: str, complaint: str) -> None:
    (shards / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=f"manifest.json: .*{complaint}.*pack the images again") as error:
        ShardSet.open(shards)
    assert one_line(error)


def test_a_manifest_cannot_name_files_elsewhere(shards: Path) -> None:
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"][0]["name"] = "../source/00.png"
    (shards / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest\.json: damaged \(splits\.train\.shards\.0\.name"):
        ShardSet.open(shards)


def test_a_shard_cut_off_grown_or_missing_is_named(shards: Path) -> None:
    path = shards / "train-00002.tar"
    content = path.read_bytes()
    path.write_bytes(content[:-512])
    with pytest.raises(UserError, match=r"train-00002\.tar: the shard is cut off") as error:
        ShardSet.open(shards)
    assert one_line(error)
    path.write_bytes(content + bytes(512))
    with pytest.raises(UserError, match=r"train-00002\.tar: the shard has \d+ bytes, not \d+"):
        ShardSet.open(shards)
    path.unlink()
    with pytest.raises(UserError, match=r"train-00002\.tar: the shard is missing"):
        ShardSet.open(shards)


def test_a_shard_of_the_same_size_but_other_content_is_found_by_its_hash(shards: Path) -> None:
    path = shards / "validation-00000.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    opened = ShardSet.open(shards)
    with pytest.raises(UserError, match=r"validation-00000\.tar: its content is not what was packed"):
        opened.verify()


def test_a_shard_cut_off_after_opening_is_named(shards: Path) -> None:
    train = ShardSet.open(shards).split("train")
    path = shards / "train-00003.tar"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"train-00003\.tar: the shard ends too early"):
        train.decode([17])
    path.unlink()
    train.reader.files.clear()
    with pytest.raises(UserError, match=r"train-00003\.tar: the shard is missing"):
        train.decode([17])


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 no index"])
def test_a_missing_or_foreign_index_is_rebuilt(shards: Path, content: bytes | None) -> None:
    path = shards / "train.index.npz"
    before = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    train = ShardSet.open(shards).split("train")
    assert path.read_bytes() == before
    assert len(train.decode(range(18))) == 18


def test_an_index_that_cannot_be_kept_is_still_used(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("featgan.data.shards.shard_set.write_whole", refuse)
    (shards / "train.index.npz").unlink()
    assert len(ShardSet.open(shards).split("train")) == 18


def test_a_shard_that_lost_images_is_noticed_when_the_index_is_rebuilt(shards: Path) -> None:
    (shards / "train.index.npz").unlink()
    path = shards / "train-00001.tar"
    with tarfile.open(path) as tar:
        third = tar.getmembers()[4]
    content = path.read_bytes()
    # A tar whose header is zeroed ends there without any error.
    path.write_bytes(content[: third.offset] + bytes(len(content) - third.offset))
    with pytest.raises(UserError, match=r"train-00001\.tar: the shard holds 2 of 5 images"):
        ShardSet.open(shards).split("train")


def test_a_split_that_is_not_there_is_named(shards: Path) -> None:
    with pytest.raises(UserError, match="no split 'test'; the shards hold train, validation"):
        ShardSet.open(shards).split("test")


def overwrite_image(split: Split, row: int, content: bytes) -> None:
    """Put other bytes where an image lies; the shard keeps its size."""
    assert len(content) <= split.index.size[row]
    path = split.reader.paths[split.shard[row]]
    with path.open("r+b") as file:
        file.seek(int(split.index.offset[row]))
        file.write(content + bytes(int(split.index.size[row]) - len(content)))


def jpeg(width: int, height: int, quality: int = 1) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def test_a_bad_image_names_shard_and_key(shards: Path) -> None:
    train = ShardSet.open(shards).split("train")
    whole = train.read_jpeg(7)
    where = rf"train-00001\.tar: {train.keys[7]}\.jpg: "
    for content, complaint in (
        (b"\x89PNG", "no JPEG where 16 x 16 was packed"),
        (b"\xff\xd8\xff\xc4", "no JPEG"),
        (jpeg(8, 16), "8 x 16 pixels where"),
        (whole[:400], "the JPEG is damaged"),
        (jpeg(16, 16).replace(b"\x00\x10\x00\x10", b"\xff\xff\xff\xff"), "65535 x 65535 pixels where"),
    ):
        overwrite_image(train, 7, content)
        with pytest.raises(UserError, match=where + complaint) as error:
            train.decode([6, 7])
        assert one_line(error)


def test_grey_jpegs_become_rgb(shards: Path) -> None:
    train = ShardSet.open(shards).split("train")
    overwrite_image(train, 7, jpeg(16, 16))
    assert train.decode([7]).shape == (1, 3, SIZE, SIZE)


def test_threads_share_the_open_files(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = ShardSet.open(shards).split("train")
    monkeypatch.setattr("featgan.data.shards.shard_set.MAX_OPEN_FILES", 1)
    rows = np.random.default_rng(0).integers(0, len(train), 300)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda row: train.read_jpeg(int(row)), rows))
    assert found == [train.read_jpeg(int(row)) for row in rows] and len(train.reader.files) <= 8
