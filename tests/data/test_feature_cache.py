"""Tests of the feature cache: rows and flips across shards, interruption, and caches that do not match."""

import errno
import json
import pickle
import resource
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from featgan.data.feature_cache.cache import FeatureCache, FeatureWriter, PendingShard
from featgan.data.feature_cache.storage import ShardArrays
from featgan.data.packing import pack as pack_module
from featgan.data.packing.pack import pack_shards
from featgan.data.readers.records import DatasetListing, Record
from featgan.data.remote.shard_files import LocalFiles
from featgan.data.shards.manifest import MANIFEST_FILE
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from featgan.features.space import FeatureSpace

NUM_TRAIN, NUM_VALIDATION = 18, 5


@dataclass(frozen=True)
class FakeBlackBoxInfo:
    """Properties of a black box with 4 features and 2 outputs."""

    spec: str = "classifiers/reg"
    layer: str = "fc1"
    sha256: str = "a" * 64
    feature_dim: int = 4
    output_dim: int = 2
    task: str = "valence_arousal"
    class_names: tuple[str, ...] = ()
    head: tuple[Tensor, Tensor] | None = None


def pack_gray_images(folder: Path, monkeypatch: pytest.MonkeyPatch, quality: int = 95) -> ShardSet:
    """Pack 18 + 5 gray images into shards of 5."""
    source = folder / "source"
    source.mkdir(exist_ok=True)
    records = []
    for number in range(NUM_TRAIN + NUM_VALIDATION):
        path = source / f"{number:02d}.png"
        Image.new("RGB", (16, 16), (number, number, number)).save(path)
        records.append(Record(f"image{number:02d}", path, "train" if number < NUM_TRAIN else "validation"))
    monkeypatch.setattr(pack_module, "read_dataset", lambda *arguments: DatasetListing(records, (), Counter()))
    out = folder / f"shards{quality}"
    pack_shards("test", source, out, image_size=16, images_per_shard=5, quality=quality, workers=1)
    return ShardSet.open(out)


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ShardSet:
    return pack_gray_images(tmp_path, monkeypatch)


def fake_features(split: str, rows: np.ndarray, flipped: bool) -> np.ndarray:
    """Return four features that identify the split, the row and the flip; the last is constant."""
    base = {"train": 0, "validation": 1000}[split]
    columns = [base + rows, np.sin(rows) + flipped, (rows % 3) * (1 - 2 * flipped), np.ones(len(rows))]
    return np.stack(columns, 1).astype(np.float32)


def fill_cache(writer: FeatureWriter, pending: PendingShard) -> None:
    rows = np.array(pending.rows)
    variants = [torch.from_numpy(fake_features(pending.split, rows, flipped)) for flipped in (False, True)]
    features = torch.stack(variants, 1)
    writer.write_shard(pending, features, features[..., :2] / 2)


def extract_fake_features(
    shards: ShardSet, name: str = "reg", blackbox: FakeBlackBoxInfo | None = None, num_components: int | None = None
) -> FeatureCache:
    writer = FeatureWriter(shards, name, blackbox or FakeBlackBoxInfo(), num_components)
    for pending in writer.list_pending():
        fill_cache(writer, pending)
    return writer.commit()


def test_rows_of_several_shards_are_in_the_requested_order(shards: ShardSet) -> None:
    cache = FeatureCache.open(shards, extract_fake_features(shards).name)
    rows = np.array([17, 0, 6, 6, 4, 5, 11])
    assert np.array_equal(cache.features("train", rows, False), fake_features("train", rows, False))
    assert np.array_equal(cache.features("train", rows, True), fake_features("train", rows, True))
    assert np.array_equal(
        cache.outputs("validation", [4, 0], True), fake_features("validation", np.array([4, 0]), True)[:, :2] / 2
    )
    assert cache.features("train", [], False).shape == (0, 4)
    assert cache.features("train", range(18), False).dtype == np.float32


def test_each_row_can_be_flipped_separately(shards: ShardSet) -> None:
    cache = extract_fake_features(shards)
    rows, flipped = np.array([3, 12, 3]), np.array([True, False, False])
    expected = np.where(flipped[:, None], fake_features("train", rows, True), fake_features("train", rows, False))
    assert np.array_equal(cache.features("train", rows, flipped), expected)


def test_row_outside_the_split_fails_an_assertion(shards: ShardSet) -> None:
    cache = extract_fake_features(shards)
    for row in (-1, NUM_TRAIN):
        with pytest.raises(AssertionError, match="row outside the split"):
            cache.features("train", [row], False)


def test_cache_describes_its_content(shards: ShardSet) -> None:
    head = (torch.arange(8.0).reshape(2, 4), torch.tensor([1.0, 2.0]))
    cache = extract_fake_features(
        shards, blackbox=FakeBlackBoxInfo(head=head, class_names=("valence", "arousal")), num_components=2
    )
    assert (cache.name, cache.feature_dim, cache.output_dim) == ("reg", 4, 2)
    assert (cache.task, cache.class_names) == ("valence_arousal", ("valence", "arousal"))
    assert cache.blackbox == {"spec": "classifiers/reg", "layer": "fc1", "sha256": "a" * 64}
    assert cache.num_components == 2
    assert cache.manifest.shards == shards.fingerprint
    assert cache.head is not None
    assert all(torch.equal(actual, expected) for actual, expected in zip(cache.head, head, strict=True))
    assert extract_fake_features(shards, name="headless").head is None
    assert extract_fake_features(shards, name="headless").num_components is None
    cache.verify()


def test_space_is_fitted_on_the_training_images_and_their_flips(shards: ShardSet) -> None:
    rows = np.arange(NUM_TRAIN)
    both = np.concatenate([fake_features("train", rows, False), fake_features("train", rows, True)])
    expected = FeatureSpace.fit(torch.from_numpy(both), 2).tensors()
    actual = FeatureCache.open(shards, extract_fake_features(shards, num_components=2).name).space.tensors()
    for name, tensor in expected.items():
        assert torch.allclose(actual[name].float(), tensor.float(), atol=1e-5), name
    assert actual["live"].tolist() == [True, True, True, False]


def test_manifest_of_release_0_1_must_be_extracted_again(shards: ShardSet) -> None:
    path = extract_fake_features(shards).path / MANIFEST_FILE
    path.write_text(path.read_text().replace('"task"', '"output_kind"'))
    with pytest.raises(UserError, match=r"manifest\.json: corrupted .*; remove .* and run `featgan extract` again"):
        FeatureCache.open(shards, "reg")
    with pytest.raises(UserError, match="run `featgan extract` again"):
        FeatureWriter(shards, "reg", FakeBlackBoxInfo())


def test_interrupted_extraction_resumes_where_it_stopped(shards: ShardSet) -> None:
    writer = FeatureWriter(shards, "reg", FakeBlackBoxInfo())
    pending = writer.list_pending()
    assert [(item.split, item.shard, len(item.rows)) for item in pending] == [
        ("train", "train-00000", 5),
        ("train", "train-00001", 5),
        ("train", "train-00002", 5),
        ("train", "train-00003", 3),
        ("validation", "validation-00000", 5),
    ]
    for item in pending[:2]:
        fill_cache(writer, item)
    with pytest.raises(UserError, match="the feature cache is not complete; run `featgan extract"):
        FeatureCache.open(shards, "reg")
    (writer.path / ".train-00002.features.npy.77.partial").write_bytes(b"half")
    resumed = FeatureWriter(shards, "reg", FakeBlackBoxInfo())
    assert [item.shard for item in resumed.list_pending()] == ["train-00002", "train-00003", "validation-00000"]
    write_time = (resumed.path / "train-00000.features.npy").stat().st_mtime_ns
    cache = extract_fake_features(shards)
    assert (resumed.path / "train-00000.features.npy").stat().st_mtime_ns == write_time
    assert np.array_equal(cache.features("train", range(18), False), fake_features("train", np.arange(18), False))
    assert not list(cache.path.glob("*partial*")) + list(cache.path.glob(".*"))


def test_truncated_shard_is_computed_again(shards: ShardSet) -> None:
    cache = extract_fake_features(shards)
    path = cache.path / "train-00001.outputs.npy"
    path.write_bytes(path.read_bytes()[:-4])
    assert [item.shard for item in FeatureWriter(shards, "reg", FakeBlackBoxInfo()).list_pending()] == ["train-00001"]


def test_number_of_components_can_change_without_a_second_extraction(shards: ShardSet) -> None:
    extract_fake_features(shards, num_components=3)
    writer = FeatureWriter(shards, "reg", FakeBlackBoxInfo(), 1)
    assert writer.list_pending() == []
    cache = writer.commit()
    assert (cache.num_components, cache.space.num_components) == (1, 1)


@pytest.mark.parametrize(
    ("blackbox", "message"),
    [
        (
            FakeBlackBoxInfo(sha256="b" * 64),
            r"contains features of a different black box \(classifiers/reg\); choose another --cache-name",
        ),
        (FakeBlackBoxInfo(layer="fc2"), r"contains features of a different layer \(fc1\); choose another --cache-name"),
        (FakeBlackBoxInfo(feature_dim=5), "contains features of 4 features and 2 outputs"),
    ],
)
@pytest.mark.parametrize("complete", [True, False])
def test_cache_name_of_another_classifier_is_an_error(
    shards: ShardSet, blackbox: FakeBlackBoxInfo, message: str, complete: bool
) -> None:
    if complete:
        extract_fake_features(shards)
    else:
        FeatureWriter(shards, "reg", FakeBlackBoxInfo())
    before = sorted(path.name for path in (shards.path / "features" / "reg").iterdir())
    with pytest.raises(UserError, match=message) as error:
        FeatureWriter(shards, "reg", blackbox)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in (shards.path / "features" / "reg").iterdir()) == before


def test_path_of_the_classifier_can_change(shards: ShardSet) -> None:
    extract_fake_features(shards)
    assert FeatureWriter(shards, "reg", replace(FakeBlackBoxInfo(), spec="/elsewhere/reg")).list_pending() == []


def test_cache_of_different_shards_is_error(shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extract_fake_features(shards)
    others = pack_gray_images(tmp_path, monkeypatch, quality=50)
    (shards.path / "features").rename(others.path / "features")
    with pytest.raises(UserError, match="features were extracted from different shards than") as error:
        FeatureCache.open(others, "reg")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="contains features of different shards; choose another --cache-name"):
        FeatureWriter(others, "reg", FakeBlackBoxInfo())


def test_error_for_a_missing_cache_names_the_command_and_existing_caches(shards: ShardSet) -> None:
    with pytest.raises(
        UserError, match=r"no such feature cache; run `featgan extract --shards \S+ --blackbox SPEC --cache-name cls`$"
    ):
        FeatureCache.open(shards, "cls")
    extract_fake_features(shards)
    with pytest.raises(UserError, match=r"\(existing caches: reg\)"):
        FeatureCache.open(shards, "cls")


def test_error_names_the_corrupted_file(shards: ShardSet) -> None:
    path = extract_fake_features(shards).path / "validation-00000.features.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(
        UserError, match=r"validation-00000\.features\.npy: \d+ bytes, but \d+ were written; .*featgan extract"
    ):
        FeatureCache.open(shards, "reg")
    path.unlink()
    with pytest.raises(UserError, match=r"validation-00000\.features\.npy: missing"):
        FeatureCache.open(shards, "reg")
    path.write_bytes(content[:-1] + b"\x7f")
    with pytest.raises(UserError, match="its checksum does not match"):
        FeatureCache.open(shards, "reg").verify()


@pytest.mark.parametrize(
    "array", [np.array(["1.5"] * 40), np.array([{}] * 5, object), np.zeros((5, 2, 4)), np.zeros((5, 4), "f4")]
)
def test_arrays_of_another_type_or_shape_are_errors(shards: ShardSet, array: np.ndarray) -> None:
    cache = extract_fake_features(shards)
    path = cache.path / "validation-00000.features.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(UserError, match=r"validation-00000\.features\.npy: (an array|contains)"):
        cache.features("validation", [0], False)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_errors(shards: ShardSet, value: float) -> None:
    cache = extract_fake_features(shards)
    path = cache.path / "validation-00000.features.npy"
    array = np.load(path)
    array[1, 0, 2] = value
    np.save(path, array)
    assert np.isfinite(cache.features("validation", [0], False)).all()
    with pytest.raises(UserError, match=r"validation-00000\.features\.npy: contains values that are not finite; run"):
        cache.features("validation", [0, 1], False)


@pytest.mark.parametrize("name", ["manifest.json", "space.safetensors"])
def test_error_for_a_corrupted_manifest_or_space_is_one_line(shards: ShardSet, name: str) -> None:
    path = extract_fake_features(shards).path / name
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(UserError, match=f"{name}: .*featgan extract") as error:
        assert FeatureCache.open(shards, "reg").space
    assert "\n" not in str(error.value)


def test_folder_with_other_files_is_not_changed(shards: ShardSet) -> None:
    folder = shards.path / "features" / "reg"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("text")
    with pytest.raises(UserError, match="is not a feature cache; choose another --cache-name"):
        FeatureWriter(shards, "reg", FakeBlackBoxInfo())
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_cache_can_be_in_another_folder(shards: ShardSet, tmp_path: Path) -> None:
    inside, outside = extract_fake_features(shards), extract_fake_features(shards, str(tmp_path / "caches" / "mine"))
    assert (outside.name, outside.path) == ("mine", tmp_path / "caches" / "mine")
    rows = np.arange(NUM_TRAIN)
    assert np.array_equal(outside.features("train", rows, True), inside.features("train", rows, True))
    # The manifests differ only in the location of the shards.
    manifests = [json.loads((cache.path / MANIFEST_FILE).read_text()) for cache in (inside, outside)]
    assert "shards_location" not in manifests[0]
    assert manifests[1].pop("shards_location") == str(shards.path)
    assert manifests[0] == manifests[1]
    outside.path.rename(tmp_path / "moved")
    FeatureCache.open(shards, str(tmp_path / "moved")).verify()
    FeatureCache.open(shards, str(tmp_path / "moved" / MANIFEST_FILE)).verify()


def test_missing_cache_in_another_folder_names_the_command(shards: ShardSet, tmp_path: Path) -> None:
    folder = tmp_path / "none"
    with pytest.raises(UserError, match=rf"{folder}: no such feature cache; run `featgan extract .* --out {folder}`$"):
        FeatureCache.open(shards, str(folder))


def test_cache_of_different_shards_in_another_folder_is_an_error(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path / "cache")
    extract_fake_features(shards, folder)
    others = pack_gray_images(tmp_path, monkeypatch, quality=50)
    with pytest.raises(UserError, match="from different shards than .*shards50; name the cache of these shards"):
        FeatureCache.open(others, folder)
    with pytest.raises(UserError, match="contains features of different shards; choose another --out"):
        FeatureWriter(others, folder, FakeBlackBoxInfo())


def test_other_folders_are_not_used_as_a_cache(shards: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    for path in (shards.path, shards.path.parent, tmp_path / "file"):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UserError, match=f"{path}: already exists and is not a feature cache; choose another --out"):
            FeatureWriter(shards, str(path), FakeBlackBoxInfo())
        assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(UserError, match="not the manifest of a feature cache; name another folder"):
        FeatureCache.open(shards, str(shards.path))
    with pytest.raises(UserError, match="features cannot be written to a URL; choose a local folder with --out"):
        FeatureWriter(shards, "https://example.org/cache", FakeBlackBoxInfo())


def test_cache_can_be_written_to_the_folder_of_its_jobs(shards: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "cache" / "jobs" / "001-extract").mkdir(parents=True)
    assert extract_fake_features(shards, str(tmp_path / "cache")).num_components is None


@pytest.mark.parametrize("name", ["..", "", ".hidden", "a b"])
def test_invalid_cache_name_is_an_error(shards: ShardSet, name: str) -> None:
    with pytest.raises(UserError, match="feature cache name"):
        FeatureWriter(shards, name, FakeBlackBoxInfo())


def test_more_components_than_features_are_an_error(shards: ShardSet) -> None:
    with pytest.raises(UserError, match="num-components 9: must be between 1 and 4, .* layer fc1"):
        FeatureWriter(shards, "reg", FakeBlackBoxInfo(), 9)
    assert not (shards.path / "features").exists()


def test_error_names_the_image_whose_features_are_not_finite(shards: ShardSet) -> None:
    writer = FeatureWriter(shards, "reg", FakeBlackBoxInfo())
    pending = writer.list_pending()[0]
    features, outputs = torch.zeros(5, 2, 4), torch.zeros(5, 2, 2)
    features[3, 1, 0] = torch.nan
    key = shards.get_split("train").keys_of([3])[0]
    with pytest.raises(UserError, match=f"classifiers/reg: features of image {key} are not finite"):
        writer.write_shard(pending, features, outputs)
    assert writer.list_pending()[0] == pending


def test_constant_features_are_an_error(shards: ShardSet) -> None:
    writer = FeatureWriter(shards, "reg", FakeBlackBoxInfo())
    for pending in writer.list_pending():
        writer.write_shard(pending, torch.ones(len(pending.rows), 2, 4), torch.zeros(len(pending.rows), 2, 2))
    with pytest.raises(UserError, match="layer fc1 outputs the same features for all images"):
        writer.commit()


def test_error_for_a_full_disk_is_one_line_and_written_shards_remain(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = FeatureWriter(shards, "reg", FakeBlackBoxInfo())
    first, second, *_ = writer.list_pending()
    fill_cache(writer, first)

    def raise_disk_full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", raise_disk_full)
    with pytest.raises(
        UserError, match="reg: cannot be written: the disk is full; free some space and run the command again"
    ):
        fill_cache(writer, second)
    monkeypatch.undo()
    assert sorted(path.name for path in writer.path.iterdir()) == [
        "partial.json",
        "train-00000.features.npy",
        "train-00000.outputs.npy",
    ]


def test_written_file_that_cannot_be_read_back_is_a_user_error(shards: ShardSet) -> None:
    writer = FeatureWriter(shards, "reg", FakeBlackBoxInfo())
    for pending in writer.list_pending():
        fill_cache(writer, pending)
    path = writer.path / "train-00001.features.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="train-00001.features.npy: cannot be read back .*; check the disk"):
        writer.commit()
    assert not (writer.path / MANIFEST_FILE).exists()


def test_memory_maps_are_not_pickled(shards: ShardSet) -> None:
    cache = extract_fake_features(shards)
    rows = np.arange(NUM_TRAIN)
    expected = cache.features("train", rows, False)
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.arrays["train", "features"].maps == {}
    assert np.array_equal(copy.features("train", rows, False), expected)


def test_few_files_stay_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (200, 400))
    num_shards = 60
    values = np.arange(num_shards * 4, dtype=np.float32).reshape(num_shards, 2, 2, 1)
    paths = [tmp_path / f"{shard}.npy" for shard in range(num_shards)]
    for path, shard_values in zip(paths, values, strict=True):
        np.save(path, shard_values)
    arrays, rows = ShardArrays(LocalFiles(paths), [2] * num_shards, 1), np.random.default_rng(0).permutation(120)
    assert np.array_equal(arrays.gather_rows(rows, True), values.reshape(-1, 2, 1)[rows, 1])
    assert list(arrays.maps) == list(range(35, 60)), "an eighth of the files that may be open, the newest ones"


def test_manifest_lists_every_file(shards: ShardSet) -> None:
    path = extract_fake_features(shards).path
    listing = json.loads((path / "manifest.json").read_text())["files"]
    assert sorted(listing) == sorted(file.name for file in path.iterdir() if file.name != "manifest.json")
