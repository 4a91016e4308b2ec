"""Packing: what is kept, how it is cropped, that equal input gives equal bytes, and that bad input leaves nothing."""

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
from featgan.data.packing import writer as writer_module
from featgan.data.packing.crop import CropJob, CropOptions
from featgan.data.packing.pack import PackSummary, crop_all, pack, print_summary
from featgan.data.packing.plan import choose_split, plan, safe_key
from featgan.data.readers.registry import Layout, Record
from featgan.errors import UserError

OPTIONS = CropOptions(image_size=16, quality=95, crop=None, margin=0.0)


def colour(number: int) -> tuple[int, int, int]:
    return (40 + 37 * number % 200, 30 + 61 * number % 200, 50 + 17 * number % 200)


def draw_source(folder: Path, count: int, **columns: list[object]) -> Path:
    """`count` flat images of 24 x 20 pixels with a csv; every fifth is for validation, unless `columns` says else."""
    table: dict[str, list[object]] = {
        "filename": [f"{number:03d}.png" for number in range(count)],
        "split": ["validation" if number % 5 == 4 else "train" for number in range(count)],
        "expression": [number % 8 for number in range(count)],
        **columns,
    }
    folder.mkdir()
    for number, name in enumerate(table["filename"]):
        Image.new("RGB", (24, 20), colour(number)).save(folder / str(name))
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
    return folder


def pack_small(source: Path, out: Path, **options: object) -> PackSummary:
    settings: dict[str, object] = {"image_size": 16, "images_per_shard": 5, "workers": 1, **options}
    return pack("csv", source, out, **settings)  # type: ignore[arg-type]


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_image_is_packed_with_its_labels(tmp_path: Path) -> None:
    source = draw_source(tmp_path / "source", 20, valence=[number / 20 for number in range(20)])
    summary = pack_small(source, tmp_path / "out")
    assert summary.kept == {"train": 16, "validation": 4}
    assert sum(summary.classes["train"].values()) == 16
    names = [f"train-{number:05d}.tar" for number in range(4)] + ["validation-00000.tar"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == names
    packed = {name: data for shard in names for name, data in members(tmp_path / "out" / shard).items()}
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
            assert np.abs(pixels.astype(int) - colour(number)).max() <= 3


def test_equal_input_gives_equal_bytes_for_any_number_of_workers(tmp_path: Path) -> None:
    source = draw_source(tmp_path / "source", 70)
    pack_small(source, tmp_path / "one", workers=1)
    pack_small(source, tmp_path / "two", workers=2)
    assert folder_bytes(tmp_path / "one") == folder_bytes(tmp_path / "two")


def test_shards_are_mixed_whatever_the_order_of_the_records(tmp_path: Path) -> None:
    records = [Record(key=f"image{number:03d}", path=tmp_path / f"{number}.png", split="train") for number in range(50)]
    forward, _ = plan(Layout(records, (), Counter()), tmp_path, 0.1, None)
    backward, _ = plan(Layout(records[::-1], (), Counter()), tmp_path, 0.1, None)
    sample, _ = plan(Layout(records, (), Counter()), tmp_path, 0.1, 10)
    keys = [item.key for item in forward]
    assert keys == [item.key for item in backward]
    assert keys != sorted(keys)
    assert [item.key for item in sample] == keys[:10]


def test_packing_again_says_it_is_done(tmp_path: Path) -> None:
    source = draw_source(tmp_path / "source", 10)
    first = pack_small(source, tmp_path / "out")
    before = folder_bytes(tmp_path / "out")
    again = pack_small(source, tmp_path / "out")
    assert again.already
    assert not first.already
    assert again.manifest == first.manifest
    assert folder_bytes(tmp_path / "out") == before


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 500)


@pytest.mark.parametrize("harm", [cut, flip_bit, Path.unlink])
def test_packing_again_mends_damaged_shards(
    tmp_path: Path, harm: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = draw_source(tmp_path / "source", 20), tmp_path / "out"
    pack_small(source, out)
    before = folder_bytes(out)
    (out / "features" / "box").mkdir(parents=True)
    (out / "features" / "box" / "train-00001.features.npy").write_bytes(b"of the same bytes")
    harm(out / "train-00001.tar")
    again = pack_small(source, out)
    assert not again.already
    assert "not what was packed; packing it again" in " ".join(capsys.readouterr().err.split())
    assert (out / "features" / "box" / "train-00001.features.npy").read_bytes() == b"of the same bytes"
    shutil.rmtree(out / "features")
    assert folder_bytes(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    assert pack_small(source, out).already


def test_features_of_other_bytes_do_not_survive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = draw_source(tmp_path / "source", 20), tmp_path / "out"
    pack_small(source, out)
    (out / "features" / "box").mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    for number in range(20):  # other pixels under the same names, labels and file sizes, as another decoder gives
        path = source / f"{number:03d}.png"
        size = path.stat().st_size
        Image.new("RGB", (24, 20), colour(number + 1)).save(path)
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
        os.truncate(path, size)
    assert pack_small(source, out).already
    flip_bit(out / "train-00001.tar")
    pack_small(source, out)
    assert not (out / "features").exists()
    assert "was of other bytes than those packed now" in " ".join(capsys.readouterr().err.split())
    assert (out / "notes.txt").read_text() == "mine"
    assert pack_small(source, out).already


def test_a_damaged_manifest_says_what_to_remove(tmp_path: Path) -> None:
    source, out = draw_source(tmp_path / "source", 5), tmp_path / "out"
    pack_small(source, out)
    cut(out / "manifest.json")
    with pytest.raises(UserError, match=r"manifest\.json: damaged .*; remove .*out and pack again"):
        pack_small(source, out)


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    source = draw_source(tmp_path / "source", 10)
    pack_small(source, tmp_path / "out")
    with pytest.raises(UserError, match="packed with image_size 16, not 24"):
        pack_small(source, tmp_path / "out", image_size=24)
    (source / "labels.csv").write_text("filename,split,expression\n000.png,train,3\n")
    with pytest.raises(UserError, match="other images or labels"):
        pack_small(source, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="holds no packed shards"):
        pack_small(source, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def damage(path: Path) -> None:
    path.write_bytes(b"<html>404</html>" * 50)


def test_few_unusable_files_are_skipped_counted_and_listed(tmp_path: Path) -> None:
    source = draw_source(tmp_path / "source", 110)
    damage(source / "007.png")
    summary = pack_small(source, tmp_path / "out", images_per_shard=1000)
    assert sum(summary.kept.values()) == 109
    assert summary.skipped == {"not an image": 1}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["skipped_files"] == [{"source": "007.png", "reason": "not an image"}]


@pytest.mark.parametrize(("damaged", "strict"), [(2, False), (1, True)])
def test_more_unusable_files_are_an_error_and_nothing_is_left(tmp_path: Path, damaged: int, strict: bool) -> None:
    source = draw_source(tmp_path / "source", 110)
    for number in range(damaged):
        damage(source / f"{number:03d}.png")
    allowed = "--strict allows none" if strict else "and 1 more of 110 files; at most 1% may be unusable"
    with pytest.raises(UserError, match=rf"00\d\.png: not an image.*{allowed}") as error:
        pack_small(source, tmp_path / "out", strict=strict)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_files_missing_from_the_disk_count_as_unusable(tmp_path: Path) -> None:
    source = draw_source(tmp_path / "source", 110)
    (source / "000.png").unlink()
    summary = pack_small(source, tmp_path / "out")
    assert summary.skipped == {"missing file": 1}
    assert [file.source for file in summary.manifest.skipped_files] == ["000.png"]
    (source / "001.png").unlink()
    with pytest.raises(UserError, match=r"000\.png: missing file and 1 more"):
        pack_small(source, tmp_path / "another")
    assert not (tmp_path / "another").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_line_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    source = draw_source(tmp_path / "source", 70)
    whole = writer_module.tar_member

    def fill(name: str, data: bytes) -> bytes:
        if len(list((tmp_path / ".out.partial").glob("*.tar"))) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(name, data)

    monkeypatch.setattr(writer_module, "tar_member", fill)
    with pytest.raises(UserError, match=r"out: cannot be written: the disk is full; free some space") as error:
        pack_small(source, tmp_path / "out", workers=workers)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    source = draw_source(tmp_path / "source", 5)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        pack_small(source, tmp_path / "file" / "out")


def test_what_a_killed_packing_left_is_removed(tmp_path: Path) -> None:
    source = draw_source(tmp_path / "source", 10)
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "train-00000.tar").write_bytes(b"half")
    (tmp_path / ".out.partial" / "train-00099.tar").write_bytes(b"half")
    pack_small(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    assert not (tmp_path / "out" / "train-00099.tar").exists()


def test_two_packings_do_not_share_a_folder(tmp_path: Path) -> None:
    source = draw_source(tmp_path / "source", 10)
    (tmp_path / ".out.partial").mkdir()
    held = os.open(tmp_path / ".out.partial", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another process is writing it"):
        pack_small(source, tmp_path / "out")
    os.close(held)
    assert (tmp_path / ".out.partial").exists()


def die(jobs: object, options: object) -> None:
    os._exit(9)


def test_a_killed_worker_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_module, "crop_files", die)
    jobs = [CropJob(tmp_path / "none.png", None)] * 100
    with pytest.raises(UserError, match="worker process was killed"):
        list(crop_all(jobs, OPTIONS, 2))


def test_nobody_is_in_both_splits(tmp_path: Path) -> None:
    people = [str(number % 40) for number in range(400)]
    records = [
        Record(key=f"image{number}", path=tmp_path / "a.png", split="", identity=person)
        for number, person in enumerate(people)
    ]
    splits = [choose_split(record, 0.25) for record in records]
    by_split = {name: {people[row] for row in range(400) if splits[row] == name} for name in ("train", "validation")}
    assert not by_split["train"] & by_split["validation"]
    assert 4 <= len(by_split["validation"]) <= 16
    assert {choose_split(record, 0.0) for record in records} == {"train"}


def test_a_repeated_record_is_counted_and_a_contradiction_refused(tmp_path: Path) -> None:
    once = Record(key="a", path=tmp_path / "a.png", split="train", expression=1)
    items, repeated = plan(Layout([once, once], (), Counter()), tmp_path, 0.1, None)
    assert (len(items), repeated) == (1, 1)
    other = Record(key="a", path=tmp_path / "a.png", split="train", expression=2)
    with pytest.raises(UserError, match="two records are called 'a'"):
        plan(Layout([once, other], (), Counter()), tmp_path, 0.1, None)


def test_nothing_to_pack_says_what_was_left_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing to pack \(12 no face left out\)"):
        plan(Layout([], (), Counter({"no face": 12})), tmp_path, 0.1, None)


def test_keys_fit_webdataset_and_stay_distinct() -> None:
    assert safe_key("train/00001") == "train/00001"
    keys = ["a.b", "a_b", "a b", "../a", "a.b.jpg", "x" * 200, "x" * 199 + "y", "Ünïcode", "é", "日本"]
    safe = [safe_key(key) for key in keys]
    assert len(set(safe)) == len(keys)
    assert all("." not in key and len(key) <= 80 and key.isascii() and not key.startswith("/") for key in safe)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("image_size", 0),
        ("quality", 101),
        ("images_per_shard", 0),
        ("crop", 3),
        ("limit", 0),
        ("validation_fraction", 1.5),
    ],
)
def test_impossible_options_are_refused(tmp_path: Path, option: str, value: float) -> None:
    source = draw_source(tmp_path / "source", 3)
    with pytest.raises(UserError, match=f"{option.replace('_', ' ')} {value}: it must be"):
        pack_small(source, tmp_path / "out", **{option: value})
    assert not (tmp_path / "out").exists()


def test_the_summary_shows_classes_and_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = draw_source(tmp_path / "source", 110)
    damage(source / "007.png")
    print_summary(pack_small(source, tmp_path / "out"))
    shown = capsys.readouterr().out
    assert "contempt" in shown
    assert "109 images in 23 shards" in shown
    assert "skipped: 1 not an image" in shown
