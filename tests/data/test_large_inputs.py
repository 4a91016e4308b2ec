"""Large data sets: what is allowed is written and read again, and what is not is rejected before the work."""

import dataclasses
import json
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from featgan.blackbox.fitting.model_folder import METADATA_FILE, open_fitted_classifier
from featgan.blackbox.spec import parse_spec
from featgan.data.feature_cache.storage import CacheFile
from featgan.data.packing.pack import MAX_LISTED_FILES, Packer, PackOptions, check_manifest_size
from featgan.data.readers import text_tables
from featgan.data.readers.records import DatasetListing
from featgan.data.readers.text_tables import TextTable
from featgan.data.shards.manifest import (
    ShardFile,
    ShardManifest,
    SkippedFile,
    SplitManifest,
    SplitName,
    load_shard_manifest,
)
from featgan.errors import UserError
from featgan.system.json_files import read_json
from featgan.system.limits import MAX_CLASSES, MAX_JSON_BYTES, MAX_SHARDS
from tests.helpers.limits import measure_call

SHA256 = "0" * 64


def make_options(images_per_shard: int = 1000) -> PackOptions:
    return PackOptions("folder", 16, 95, images_per_shard, None, 0.1, 0.1, None, {})


def make_manifest(num_shards: int, num_classes: int) -> ShardManifest:
    """Return a manifest with two splits, and all the skipped files that it may list."""
    classes = tuple(f"n{number:08d} with a long name" for number in range(num_classes))
    splits: dict[SplitName, SplitManifest] = {}
    counts_by_split: dict[SplitName, int] = {"train": num_shards - 100, "validation": 100}
    for name, count in counts_by_split.items():
        shards = tuple(
            ShardFile(name=f"{name}-{number:05d}.tar", count=1000, bytes=50_000_000, sha256=SHA256)
            for number in range(count)
        )
        counts = dict.fromkeys(classes, 0)
        splits[name] = SplitManifest(count=1000 * count, classes=counts, shards=shards, index_sha256=SHA256)
    return ShardManifest(
        featgan="1", source="images", source_sha256=SHA256, options=dataclasses.asdict(make_options()), image_size=16,
        classes=classes, splits=splits, skipped={"unreadable": 1_000_000},
        skipped_files=tuple(SkippedFile(source=f"folder/{'x' * 200}{n}.jpg", reason="unreadable") for n in range(1000)),
    )  # fmt: skip


def test_largest_manifest_can_be_read(tmp_path: Path) -> None:
    manifest = make_manifest(MAX_SHARDS, MAX_CLASSES)
    (tmp_path / "manifest.json").write_text(manifest.to_json())
    assert load_shard_manifest(tmp_path) == manifest


def test_largest_manifest_of_a_feature_cache_can_be_read(tmp_path: Path) -> None:
    files = {
        f"validation-{number:05d}.{kind}.npy": CacheFile(bytes=8_000_128, sha256=SHA256).model_dump()
        for number in range(MAX_SHARDS)
        for kind in ("features", "outputs")
    }
    content = json.dumps({"files": files, "class_names": [f"class {number}" for number in range(16_384)]}, indent=1)
    (tmp_path / "manifest.json").write_text(content)
    assert len(content) < MAX_JSON_BYTES and len(read_json(tmp_path / "manifest.json")["files"]) == 2 * MAX_SHARDS


def test_shards_and_classes_beyond_the_manifest_are_rejected_before_packing() -> None:
    listing = DatasetListing([], tuple(map(str, range(MAX_CLASSES))), Counter(), [])
    check_manifest_size(listing, 30_000_000, make_options())
    with pytest.raises(UserError, match="--images-per-shard 10: gives 100,000 shards.*use at least 34"):
        check_manifest_size(listing, 1_000_000, make_options(10))
    listing = dataclasses.replace(listing, classes=(*listing.classes, "one more"))
    with pytest.raises(UserError, match="32,768 classes: at most 32,767"):
        check_manifest_size(listing, 10, make_options())


def test_images_larger_than_a_manifest_allows_are_rejected_before_packing() -> None:
    with pytest.raises(UserError, match="--image-size 2048: must be between 8 and 1024"):
        dataclasses.replace(make_options(), image_size=2048)


def test_a_million_skipped_files_are_counted_but_not_listed(tmp_path: Path) -> None:
    listing = DatasetListing([], (), Counter({"no face": 1_000_000}), [])
    packer = Packer(tmp_path, listing, [], make_options(), False)
    packer.unusable = [SkippedFile(source=f"folder/{number}.jpg", reason="unreadable") for number in range(200_000)]
    packer.skipped["unreadable"] = 200_000
    packer.finish("images", SHA256)
    manifest = load_shard_manifest(tmp_path)
    assert manifest.skipped == {"no face": 1_000_000, "unreadable": 200_000}
    assert len(manifest.skipped_files) == MAX_LISTED_FILES


def test_tables_beyond_the_limits_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "labels.csv"
    with path.open("wb") as file:
        file.write(b"image,label\n")
        file.truncate(1 << 40)  # a sparse file of 1 TiB
    with pytest.raises(UserError, match=f"{path}: has {1 << 40} bytes; at most"):
        TextTable(path)
    path.write_text("image,label\n" + "a.png,1\n" * 10)
    assert len(list(TextTable(path))) == 10
    monkeypatch.setattr(text_tables, "MAX_TABLE_LINES", 10)
    with pytest.raises(UserError, match="more than 10 lines"):
        list(TextTable(path))


@pytest.mark.parametrize(
    "content", [b"a," * 500_000 + b"\n", b'"' + b"a\n" * 1_000_000, b"x" * (10 << 20), b"i,l\n" + b"," * 1_000_000]
)
def test_table_with_long_rows_is_rejected_in_one_line_at_low_cost(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(content)
    setup = "from pathlib import Path\nfrom featgan.data.readers.text_tables import TextTable"
    call = f"table = TextTable(Path({str(tmp_path / 'labels.csv')!r})); list(table); table.require_columns('image')"
    measured = measure_call(setup, call)
    assert measured.message and "\n" not in measured.message and len(measured.message) < 1000, measured
    assert measured.is_cheap(), measured


def test_message_lists_few_of_many_columns(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(",".join(f"c{number}" for number in range(100_000)) + "\n")
    with pytest.raises(UserError, match="c49 and 99950 more; add or rename one") as error:
        TextTable(tmp_path / "labels.csv").require_columns("image")
    assert len(str(error.value)) < 1000


def test_network_of_a_classifier_is_compared_with_its_weights_before_it_is_built(tmp_path: Path) -> None:
    save_file({"a.weight": torch.zeros(1)}, tmp_path / "classifier.safetensors")
    metadata = {
        "task": "expression", "class_names": ["a", "b"], "preprocessing": {}, "settings": {}, "scores": {},
        "architecture": {"network": "torchvision:vit_h_14", "output_dim": 2},
        "weights_sha256": sha256((tmp_path / "classifier.safetensors").read_bytes()).hexdigest(),
    }  # fmt: skip
    (tmp_path / METADATA_FILE).write_text(json.dumps(metadata))
    with pytest.raises(UserError, match="not the weights of this"):
        open_fitted_classifier(parse_spec(str(tmp_path)), torch.device("cpu"))
    setup = (
        "import torch\nfrom featgan.blackbox.fitting.model_folder import open_fitted_classifier\n"
        "from featgan.blackbox.spec import parse_spec\nfrom torchvision.models import vit_h_14"
    )
    measured = measure_call(setup, f"open_fitted_classifier(parse_spec({str(tmp_path)!r}), torch.device('cpu'))")
    assert measured.is_cheap(), measured
