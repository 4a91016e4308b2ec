"""The feature cache: rows across shards, mirror images, interruption, and caches that do not belong."""

import errno
import json
import pickle
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from featgan.data.feature_cache import cache as features_module
from featgan.data.feature_cache.cache import FeatureCache, FeatureWriter, PendingShard
from featgan.data.packing import pack as pack_module
from featgan.data.packing.pack import pack
from featgan.data.readers.registry import Layout, Record
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from featgan.features.space import FeatureSpace

TRAIN, VALIDATION = 18, 5


@dataclass(frozen=True)
class Box:
    """What is known of a black box with 4 features and 2 outputs."""

    spec: str = "boxes/reg"
    layer: str = "fc1"
    sha256: str = "a" * 64
    feature_dim: int = 4
    output_dim: int = 2
    output_kind: str = "valence_arousal"
    class_names: tuple[str, ...] = ()
    head: tuple[Tensor, Tensor] | None = None


def pack_grey(folder: Path, monkeypatch: pytest.MonkeyPatch, quality: int = 95) -> ShardSet:
    """18 + 5 grey images in shards of 5."""
    source = folder / "source"
    source.mkdir(exist_ok=True)
    records = []
    for number in range(TRAIN + VALIDATION):
        path = source / f"{number:02d}.png"
        Image.new("RGB", (16, 16), (number, number, number)).save(path)
        records.append(Record(f"image{number:02d}", path, "train" if number < TRAIN else "validation"))
    monkeypatch.setattr(pack_module, "read_layout", lambda name, source: Layout(records, (), Counter()))
    out = folder / f"shards{quality}"
    pack("mine", source, out, image_size=16, images_per_shard=5, quality=quality, workers=1)
    return ShardSet.open(out)


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ShardSet:
    return pack_grey(tmp_path, monkeypatch)


def features_of(split: str, rows: np.ndarray, mirrored: bool) -> np.ndarray:
    """Four made-up features that tell split, row and side apart; the last never varies."""
    base = {"train": 0, "validation": 1000}[split]
    columns = [base + rows, np.sin(rows) + mirrored, (rows % 3) * (1 - 2 * mirrored), np.ones(len(rows))]
    return np.stack(columns, 1).astype(np.float32)


def fill(writer: FeatureWriter, pending: PendingShard) -> None:
    rows = np.array(pending.rows)
    sides = [torch.from_numpy(features_of(pending.split, rows, mirrored)) for mirrored in (False, True)]
    features = torch.stack(sides, 1)
    writer.write(pending, features, features[..., :2] / 2)


def extract(shards: ShardSet, name: str = "reg", box: Box | None = None, components: int | None = None) -> FeatureCache:
    writer = FeatureWriter(shards, name, box or Box(), components)
    for pending in writer.pending():
        fill(writer, pending)
    return writer.commit()


def test_rows_across_shards_come_in_order(shards: ShardSet) -> None:
    cache = FeatureCache.open(shards, extract(shards).name)
    rows = np.array([17, 0, 6, 6, 4, 5, 11])
    assert np.array_equal(cache.features("train", rows, False), features_of("train", rows, False))
    assert np.array_equal(cache.features("train", rows, True), features_of("train", rows, True))
    assert np.array_equal(
        cache.outputs("validation", [4, 0], True), features_of("validation", np.array([4, 0]), True)[:, :2] / 2
    )
    assert cache.features("train", [], False).shape == (0, 4)
    assert cache.features("train", range(18), False).dtype == np.float32


def test_each_row_can_be_mirrored_by_itself(shards: ShardSet) -> None:
    cache = extract(shards)
    rows, mirrored = np.array([3, 12, 3]), np.array([True, False, False])
    expected = np.where(mirrored[:, None], features_of("train", rows, True), features_of("train", rows, False))
    assert np.array_equal(cache.features("train", rows, mirrored), expected)


def test_a_row_outside_the_split_is_a_mistake(shards: ShardSet) -> None:
    cache = extract(shards)
    for row in (-1, TRAIN):
        with pytest.raises(AssertionError, match="row outside the split"):
            cache.features("train", [row], False)


def test_the_cache_tells_what_it_holds(shards: ShardSet) -> None:
    head = (torch.arange(8.0).reshape(2, 4), torch.tensor([1.0, 2.0]))
    cache = extract(shards, box=Box(head=head, class_names=("valence", "arousal")), components=2)
    assert (cache.name, cache.feature_dim, cache.output_dim) == ("reg", 4, 2)
    assert (cache.output_kind, cache.class_names) == ("valence_arousal", ("valence", "arousal"))
    assert cache.blackbox == {"spec": "boxes/reg", "layer": "fc1", "sha256": "a" * 64}
    assert cache.num_components == 2
    assert cache.manifest["shards"] == shards.fingerprint
    assert cache.head is not None
    assert all(torch.equal(found, given) for found, given in zip(cache.head, head, strict=True))
    assert extract(shards, name="headless").head is None
    assert extract(shards, name="headless").num_components is None
    cache.verify()


def test_the_space_is_fitted_on_the_training_images_and_their_mirror_images(shards: ShardSet) -> None:
    rows = np.arange(TRAIN)
    both = np.concatenate([features_of("train", rows, False), features_of("train", rows, True)])
    expected = FeatureSpace.fit(torch.from_numpy(both), 2).tensors()
    found = FeatureCache.open(shards, extract(shards, components=2).name).space.tensors()
    for name, tensor in expected.items():
        assert torch.allclose(found[name].float(), tensor.float(), atol=1e-5), name
    assert found["live"].tolist() == [True, True, True, False]


def test_the_space_is_fitted_on_a_bounded_sample(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "MOST_ROWS", 12)
    rows = np.arange(0, TRAIN, 3)
    both = np.concatenate([features_of("train", rows, False), features_of("train", rows, True)])
    assert torch.allclose(extract(shards).space.mean, torch.from_numpy(both.mean(0)), atol=1e-5)


def test_an_interrupted_extraction_goes_on_where_it_stopped(shards: ShardSet) -> None:
    writer = FeatureWriter(shards, "reg", Box())
    pending = writer.pending()
    assert [(part.split, part.shard, len(part.rows)) for part in pending] == [
        ("train", "train-00000", 5),
        ("train", "train-00001", 5),
        ("train", "train-00002", 5),
        ("train", "train-00003", 3),
        ("validation", "validation-00000", 5),
    ]
    for part in pending[:2]:
        fill(writer, part)
    with pytest.raises(UserError, match="the feature cache is not complete; run `featgan extract"):
        FeatureCache.open(shards, "reg")
    (writer.path / ".train-00002.features.npy.77.partial").write_bytes(b"half")
    again = FeatureWriter(shards, "reg", Box())
    assert [part.shard for part in again.pending()] == ["train-00002", "train-00003", "validation-00000"]
    written = (again.path / "train-00000.features.npy").stat().st_mtime_ns
    cache = extract(shards)
    assert (again.path / "train-00000.features.npy").stat().st_mtime_ns == written
    assert np.array_equal(cache.features("train", range(18), False), features_of("train", np.arange(18), False))
    assert not list(cache.path.glob("*partial*")) + list(cache.path.glob(".*"))


def test_a_half_written_shard_is_computed_again(shards: ShardSet) -> None:
    cache = extract(shards)
    path = cache.path / "train-00001.outputs.npy"
    path.write_bytes(path.read_bytes()[:-4])
    assert [part.shard for part in FeatureWriter(shards, "reg", Box()).pending()] == ["train-00001"]


def test_another_number_of_components_needs_no_second_extraction(shards: ShardSet) -> None:
    extract(shards, components=3)
    writer = FeatureWriter(shards, "reg", Box(), 1)
    assert writer.pending() == []
    cache = writer.commit()
    assert (cache.num_components, cache.space.num_components) == (1, 1)


@pytest.mark.parametrize(
    ("box", "complaint"),
    [
        (Box(sha256="b" * 64), r"holds features of another black box \(boxes/reg\); choose another --name"),
        (Box(layer="fc2"), r"holds features of another layer \(fc1\); choose another --name"),
        (Box(feature_dim=5), "holds features of 4 features and 2 outputs"),
    ],
)
@pytest.mark.parametrize("complete", [True, False])
def test_the_name_of_another_box_is_refused(shards: ShardSet, box: Box, complaint: str, complete: bool) -> None:
    if complete:
        extract(shards)
    else:
        FeatureWriter(shards, "reg", Box())
    before = sorted(path.name for path in (shards.path / "features" / "reg").iterdir())
    with pytest.raises(UserError, match=complaint) as error:
        FeatureWriter(shards, "reg", box)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in (shards.path / "features" / "reg").iterdir()) == before


def test_the_same_box_by_another_path_is_the_same_box(shards: ShardSet) -> None:
    extract(shards)
    assert FeatureWriter(shards, "reg", replace(Box(), spec="/elsewhere/reg")).pending() == []


def test_a_cache_of_other_shards_is_refused(shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extract(shards)
    others = pack_grey(tmp_path, monkeypatch, quality=50)
    (shards.path / "features").rename(others.path / "features")
    with pytest.raises(UserError, match="features are of other shards than") as error:
        FeatureCache.open(others, "reg")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="holds features of other shards; choose another --name"):
        FeatureWriter(others, "reg", Box())


def test_a_missing_cache_names_the_command_and_those_that_are_there(shards: ShardSet) -> None:
    with pytest.raises(
        UserError, match=r"no such feature cache; run `featgan extract --shards \S+ --blackbox SPEC --name cls`$"
    ):
        FeatureCache.open(shards, "cls")
    extract(shards)
    with pytest.raises(UserError, match=r"\(there are: reg\)"):
        FeatureCache.open(shards, "cls")


def test_damaged_files_are_named(shards: ShardSet) -> None:
    path = extract(shards).path / "validation-00000.features.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(
        UserError, match=r"validation-00000\.features\.npy: \d+ bytes where \d+ were written; .*featgan extract"
    ):
        FeatureCache.open(shards, "reg")
    path.unlink()
    with pytest.raises(UserError, match=r"validation-00000\.features\.npy: missing"):
        FeatureCache.open(shards, "reg")
    path.write_bytes(content[:-1] + b"\x7f")
    with pytest.raises(UserError, match="its content is not what was extracted"):
        FeatureCache.open(shards, "reg").verify()


@pytest.mark.parametrize(
    "array", [np.array(["1.5"] * 40), np.array([{}] * 5, object), np.zeros((5, 2, 4)), np.zeros((5, 4), "f4")]
)
def test_arrays_of_another_kind_are_not_read(shards: ShardSet, array: np.ndarray) -> None:
    cache = extract(shards)
    path = cache.path / "validation-00000.features.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(UserError, match=r"validation-00000\.features\.npy: (cut off or damaged|holds)"):
        cache.features("validation", [0], False)


@pytest.mark.parametrize("name", ["manifest.json", "space.safetensors"])
def test_a_damaged_manifest_or_space_is_one_line(shards: ShardSet, name: str) -> None:
    path = extract(shards).path / name
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(UserError, match=f"{name}: .*featgan extract") as error:
        assert FeatureCache.open(shards, "reg").space
    assert "\n" not in str(error.value)


def test_a_folder_of_something_else_is_left_alone(shards: ShardSet) -> None:
    folder = shards.path / "features" / "reg"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="is no feature cache; choose another --name"):
        FeatureWriter(shards, "reg", Box())
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("name", ["../reg", "a/b", "", ".hidden"])
def test_a_name_that_is_no_folder_name_is_refused(shards: ShardSet, name: str) -> None:
    with pytest.raises(UserError, match="feature cache name"):
        FeatureWriter(shards, name, Box())


def test_more_components_than_features_are_refused(shards: ShardSet) -> None:
    with pytest.raises(UserError, match="components 9: layer fc1 has 4 features"):
        FeatureWriter(shards, "reg", Box(), 9)
    assert not (shards.path / "features").exists()


def test_features_that_are_not_finite_name_the_image(shards: ShardSet) -> None:
    writer = FeatureWriter(shards, "reg", Box())
    pending = writer.pending()[0]
    features, outputs = torch.zeros(5, 2, 4), torch.zeros(5, 2, 2)
    features[3, 1, 0] = torch.nan
    key = shards.split("train").keys[3]
    with pytest.raises(UserError, match=f"boxes/reg: features of image {key} are not finite"):
        writer.write(pending, features, outputs)
    assert writer.pending()[0] == pending


def test_a_layer_that_says_the_same_of_all_images_is_refused(shards: ShardSet) -> None:
    writer = FeatureWriter(shards, "reg", Box())
    for pending in writer.pending():
        writer.write(pending, torch.ones(len(pending.rows), 2, 4), torch.zeros(len(pending.rows), 2, 2))
    with pytest.raises(UserError, match="layer fc1 gives all images the same features"):
        writer.commit()


def test_a_full_disk_is_one_line_and_what_is_written_stays(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = FeatureWriter(shards, "reg", Box())
    first, second, *_ = writer.pending()
    fill(writer, first)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        UserError, match="reg: cannot be written: the disk is full; free some space and run the command again"
    ):
        fill(writer, second)
    monkeypatch.undo()
    assert sorted(path.name for path in writer.path.iterdir()) == [
        "partial.json",
        "train-00000.features.npy",
        "train-00000.outputs.npy",
    ]


def test_maps_do_not_travel_to_other_processes(shards: ShardSet) -> None:
    cache = extract(shards)
    rows = np.arange(TRAIN)
    expected = cache.features("train", rows, False)
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.arrays["train", "features"].maps == {}
    assert np.array_equal(copy.features("train", rows, False), expected)


def test_the_manifest_lists_every_file_with_its_hash(shards: ShardSet) -> None:
    path = extract(shards).path
    listed = json.loads((path / "manifest.json").read_text())["files"]
    assert sorted(listed) == sorted(found.name for found in path.iterdir() if found.name != "manifest.json")
