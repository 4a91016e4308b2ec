"""Tests of packing: content and order of the shards, reproducibility, repair, and errors that leave no files."""

import csv
import errno
import fcntl
import io
import json
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featgan.data.packing import pack as pack_module
from featgan.data.packing.crop import CropJob, CropOptions
from featgan.data.packing.pack import PackSummary, crop_images_parallel, pack_shards, print_summary
from featgan.data.packing.plan import make_safe_key, plan_packing
from featgan.data.packing.validation_split import choose_validation_images
from featgan.data.packing.writer import ShardOutput
from featgan.data.readers.records import DatasetListing, Record
from featgan.errors import UserError

CROP_OPTIONS = CropOptions(image_size=16, quality=95, crop=None, margin=0.0)


def flat_color(number: int) -> tuple[int, int, int]:
    return (40 + 37 * number % 200, 30 + 61 * number % 200, 50 + 17 * number % 200)


def make_source(folder: Path, count: int, **columns: list[object]) -> Path:
    """Write `count` uniform images of 24 x 20 pixels with a table; `columns` replaces columns of the table.

    By default, every fifth image belongs to the validation split.
    """
    table: dict[str, list[object]] = {
        "filename": [f"{number:03d}.png" for number in range(count)],
        "split": ["validation" if number % 5 == 4 else "train" for number in range(count)],
        "expression": [number % 8 for number in range(count)],
        **columns,
    }
    folder.mkdir()
    for number, name in enumerate(table["filename"]):
        Image.new("RGB", (24, 20), flat_color(number)).save(folder / str(name))
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
    return folder


def pack_small(source: Path, out: Path, **options: object) -> PackSummary:
    settings: dict[str, object] = {"image_size": 16, "images_per_shard": 5, "workers": 1, **options}
    return pack_shards("csv", source, out, **settings)  # type: ignore[arg-type]


def tar_members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def read_folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_image_is_packed_with_its_labels(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", 20, valence=[number / 20 for number in range(20)])
    summary = pack_small(source, tmp_path / "out")
    assert summary.num_images_by_split == {"train": 16, "validation": 4}
    assert sum(summary.classes["train"].values()) == 16
    names = [f"train-{number:05d}.tar" for number in range(4)] + ["validation-00000.tar"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == names
    packed = {name: data for shard in names for name, data in tar_members(tmp_path / "out" / shard).items()}
    assert len(packed) == 40
    for name, data in packed.items():
        if name.endswith(".json"):
            labels = json.loads(data)
            number = int(Path(labels["source"]).stem)
            assert labels["expression"] == number % 8
            assert labels["valence"] == pytest.approx(number / 20)
            assert labels["arousal"] is None
            assert labels["split"] == ("validation" if number % 5 == 4 else "train")
            pixels = np.asarray(Image.open(io.BytesIO(packed[name.replace(".json", ".jpg")])))
            assert pixels.shape == (16, 16, 3)
            assert np.abs(pixels.astype(int) - flat_color(number)).max() <= 3


def test_equal_input_gives_equal_bytes_for_any_number_of_workers(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", 70)
    pack_small(source, tmp_path / "one", workers=1)
    pack_small(source, tmp_path / "two", workers=2)
    assert read_folder_bytes(tmp_path / "one") == read_folder_bytes(tmp_path / "two")


def test_shuffled_order_does_not_depend_on_the_order_of_the_records(tmp_path: Path) -> None:
    records = [Record(key=f"image{number:03d}", path=tmp_path / f"{number}.png", split="train") for number in range(50)]
    forward, _ = plan_packing(DatasetListing(records, (), Counter()), tmp_path, 0.0, None)
    backward, _ = plan_packing(DatasetListing(records[::-1], (), Counter()), tmp_path, 0.0, None)
    sample, _ = plan_packing(DatasetListing(records, (), Counter()), tmp_path, 0.0, 10)
    keys = [item.key for item in forward]
    assert keys == [item.key for item in backward]
    assert keys != sorted(keys)
    assert [item.key for item in sample] == keys[:10]


def test_packing_again_changes_nothing(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", 10)
    first = pack_small(source, tmp_path / "out")
    before = read_folder_bytes(tmp_path / "out")
    again = pack_small(source, tmp_path / "out")
    assert again.already_packed
    assert not first.already_packed
    assert again.manifest == first.manifest
    assert read_folder_bytes(tmp_path / "out") == before


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate_file(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 500)


@pytest.mark.parametrize("corrupt", [truncate_file, flip_bit, Path.unlink])
def test_packing_again_repairs_corrupted_shards(
    tmp_path: Path, corrupt: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = make_source(tmp_path / "source", 20), tmp_path / "out"
    pack_small(source, out)
    before = read_folder_bytes(out)
    (out / "features" / "cache").mkdir(parents=True)
    (out / "features" / "cache" / "train-00001.features.npy").write_bytes(b"features")
    corrupt(out / "train-00001.tar")
    again = pack_small(source, out)
    assert not again.already_packed
    assert "missing or corrupted; packing the shards again" in " ".join(capsys.readouterr().err.split())
    assert (out / "features" / "cache" / "train-00001.features.npy").read_bytes() == b"features"
    shutil.rmtree(out / "features")
    assert read_folder_bytes(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    assert pack_small(source, out).already_packed


def test_feature_caches_are_removed_if_packed_images_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = make_source(tmp_path / "source", 20), tmp_path / "out"
    pack_small(source, out)
    (out / "features" / "cache").mkdir(parents=True)
    (out / "notes.txt").write_text("my notes")
    for number in range(20):  # different pixels with the same names, labels and file sizes, as from another decoder
        path = source / f"{number:03d}.png"
        size = path.stat().st_size
        Image.new("RGB", (24, 20), flat_color(number + 1)).save(path)
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
        os.truncate(path, size)
    assert pack_small(source, out).already_packed
    flip_bit(out / "train-00001.tar")
    pack_small(source, out)
    assert not (out / "features").exists()
    assert "removed, because the packed images changed" in " ".join(capsys.readouterr().err.split())
    assert (out / "notes.txt").read_text() == "my notes"
    assert pack_small(source, out).already_packed


def test_error_for_a_corrupted_manifest_names_the_folder_to_remove(tmp_path: Path) -> None:
    source, out = make_source(tmp_path / "source", 5), tmp_path / "out"
    pack_small(source, out)
    truncate_file(out / "manifest.json")
    with pytest.raises(UserError, match=r"manifest\.json: not valid JSON .*; remove .*out and pack again"):
        pack_small(source, out)


def test_folder_in_use_is_not_changed(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", 10)
    pack_small(source, tmp_path / "out")
    with pytest.raises(UserError, match="packed with image size 16, not 24"):
        pack_small(source, tmp_path / "out", image_size=24)
    (source / "labels.csv").write_text("filename,split,expression\n000.png,train,3\n")
    with pytest.raises(UserError, match="different images or labels"):
        pack_small(source, tmp_path / "out")
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "thesis.txt").write_text("text")
    with pytest.raises(UserError, match="contains no packed shards"):
        pack_small(source, tmp_path / "documents")
    assert (tmp_path / "documents" / "thesis.txt").read_text() == "text"


def corrupt_image(path: Path) -> None:
    path.write_bytes(b"<html>404</html>" * 50)


def test_few_unusable_files_are_skipped_counted_and_listed(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", 110)
    corrupt_image(source / "007.png")
    summary = pack_small(source, tmp_path / "out", images_per_shard=1000)
    assert sum(summary.num_images_by_split.values()) == 109
    assert summary.skipped == {"not an image": 1}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["skipped_files"] == [{"source": "007.png", "reason": "not an image"}]


@pytest.mark.parametrize(("num_corrupted", "fail_on_unreadable"), [(2, False), (1, True)])
def test_too_many_unusable_files_are_an_error_and_leave_no_files(
    tmp_path: Path, num_corrupted: int, fail_on_unreadable: bool
) -> None:
    source = make_source(tmp_path / "source", 110)
    for number in range(num_corrupted):
        corrupt_image(source / f"{number:03d}.png")
    allowed = (
        "--fail-on-unreadable allows none"
        if fail_on_unreadable
        else "and 1 more of 110 files; at most 1% may be unusable"
    )
    with pytest.raises(UserError, match=rf"00\d\.png: not an image.*{allowed}") as error:
        pack_small(source, tmp_path / "out", fail_on_unreadable=fail_on_unreadable)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_missing_files_count_as_unusable(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", 110)
    (source / "000.png").unlink()
    summary = pack_small(source, tmp_path / "out")
    assert summary.skipped == {"missing file": 1}
    assert [file.source for file in summary.manifest.skipped_files] == ["000.png"]
    (source / "001.png").unlink()
    with pytest.raises(UserError, match=r"000\.png: missing file and 1 more"):
        pack_small(source, tmp_path / "another")
    assert not (tmp_path / "another").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_error_for_a_full_disk_is_one_line_and_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    source = make_source(tmp_path / "source", 70)
    write = ShardOutput.write

    def fail_after_three_shards(output: ShardOutput, data: bytes) -> int:
        if len(list((tmp_path / ".out.partial").glob("*.tar"))) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(output, data)

    monkeypatch.setattr(ShardOutput, "write", fail_after_three_shards)
    with pytest.raises(UserError, match=r"out: cannot be written: the disk is full; free some space") as error:
        pack_small(source, tmp_path / "out", workers=workers)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_unwritable_folder_is_an_error(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", 5)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        pack_small(source, tmp_path / "file" / "out")


def test_files_of_a_killed_packing_are_removed(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", 10)
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "train-00000.tar").write_bytes(b"half")
    (tmp_path / ".out.partial" / "train-00099.tar").write_bytes(b"half")
    pack_small(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    assert not (tmp_path / "out" / "train-00099.tar").exists()


def test_two_packings_cannot_share_a_folder(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", 10)
    (tmp_path / ".out.partial").mkdir()
    descriptor = os.open(tmp_path / ".out.partial", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="is being written by another process"):
        pack_small(source, tmp_path / "out")
    os.close(descriptor)
    assert (tmp_path / ".out.partial").exists()


def kill_process(jobs: object, options: object) -> None:
    os._exit(9)


def test_killed_worker_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_module, "crop_files", kill_process)
    jobs = [CropJob(tmp_path / "none.png", None)] * 100
    with pytest.raises(UserError, match="worker process was killed"):
        list(crop_images_parallel(jobs, CROP_OPTIONS, 2))


def test_no_person_is_in_both_splits(tmp_path: Path) -> None:
    people = [str(number % 40) for number in range(400)]
    records = [
        Record(key=f"image{number}", path=tmp_path / "a.png", split="", identity=person)
        for number, person in enumerate(people)
    ]
    validation_keys = choose_validation_images(records, 0.25)
    validation_people = {
        person for record, person in zip(records, people, strict=True) if record.key in validation_keys
    }
    assert len(validation_people) == 10 and len(validation_keys) == 100
    assert choose_validation_images(records, 0.0) == set()


def test_duplicate_records_are_counted_and_contradictions_are_errors(tmp_path: Path) -> None:
    record = Record(key="a", path=tmp_path / "a.png", split="train", expression=1)
    items, num_duplicates = plan_packing(DatasetListing([record, record], (), Counter()), tmp_path, 0.1, None)
    assert (len(items), num_duplicates) == (1, 1)
    other = Record(key="a", path=tmp_path / "a.png", split="train", expression=2)
    with pytest.raises(UserError, match="two different records have the key 'a'"):
        plan_packing(DatasetListing([record, other], (), Counter()), tmp_path, 0.1, None)


def test_error_for_no_images_lists_the_skipped_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no images to pack \(skipped: 12 no face\)"):
        plan_packing(DatasetListing([], (), Counter({"no face": 12})), tmp_path, 0.1, None)


def test_keys_are_valid_in_webdataset_and_unique() -> None:
    assert make_safe_key("train/00001") == "train/00001"
    keys = ["a.b", "a_b", "a b", "../a", "a.b.jpg", "x" * 200, "x" * 199 + "y", "Ünïcode", "é", "日本"]
    safe = [make_safe_key(key) for key in keys]
    assert len(set(safe)) == len(keys)
    assert all("." not in key and len(key) <= 80 and key.isascii() and not key.startswith("/") for key in safe)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("image_size", 0),
        ("quality", 101),
        ("images_per_shard", 0),
        ("crop", 3),
        ("max_images", 0),
        ("validation_fraction", 1.5),
    ],
)
def test_options_out_of_range_are_errors(tmp_path: Path, option: str, value: float) -> None:
    source = make_source(tmp_path / "source", 3)
    with pytest.raises(UserError, match=f"^--{option.replace('_', '-')} {value}: must be"):
        pack_small(source, tmp_path / "out", **{option: value})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["crop", "layout", "source", "not-a-name"])
def test_unknown_or_reserved_layout_option_is_an_error(tmp_path: Path, name: str) -> None:
    source = make_source(tmp_path / "source", 3)
    with pytest.raises(UserError, match=f"^--layout-option {name}: not an option of layout csv") as error:
        pack_small(source, tmp_path / "out", layout_options={name: "3"})
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_summary_contains_classes_and_skip_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_source(tmp_path / "source", 110)
    corrupt_image(source / "007.png")
    print_summary(pack_small(source, tmp_path / "out"))
    output = capsys.readouterr().out
    assert "│ 7 " in output
    assert "109 images in 23 shards, " in output
    assert "skipped: 1 not an image" in output
