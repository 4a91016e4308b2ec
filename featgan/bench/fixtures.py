"""Data for the benchmarks: synthetic faces as JPEG files and as shards, and a cache of random features."""

import os
from collections.abc import Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from featgan import __version__
from featgan.data.feature_cache.cache import FeatureCache, FeatureWriter
from featgan.data.packing.crop import encode_jpeg
from featgan.data.packing.plan import PlannedImage
from featgan.data.packing.writer import ShardWriter
from featgan.data.readers.records import EXPRESSIONS, Record
from featgan.data.shards.index import SplitIndex, load_index, serialize_index
from featgan.data.shards.manifest import MANIFEST_FILE, ShardFile, ShardManifest, SplitManifest, SplitName
from featgan.data.shards.shard_set import ShardSet
from featgan.data.synthetic.dataset import sample_factors
from featgan.data.synthetic.drawing import draw_face
from featgan.system.files import atomic_write, sha256_of

MAX_DISTINCT_FACES = 200
"""Number of different faces; larger data sets repeat them."""

FIXTURE_CACHE_NAME = "synthetic"
"""Name of the feature cache."""

JPEG_QUALITY = 95


def make_synthetic_faces(count: int, image_size: int, seed: int = 0) -> tuple[list[bytes], list[PlannedImage]]:
    """Return JPEG files, encoded as by `featgan pack`, and the packing plan with their labels."""
    factors = [sample_factors(np.random.default_rng((seed, index))) for index in range(min(count, MAX_DISTINCT_FACES))]
    distinct_jpegs = [
        encode_jpeg(Image.fromarray(draw_face(face_factors, image_size)), JPEG_QUALITY) for face_factors in factors
    ]
    jpegs = [distinct_jpegs[index % len(distinct_jpegs)] for index in range(count)]
    return jpegs, [plan_synthetic_image(index, factors[index % len(factors)]) for index in range(count)]


def plan_synthetic_image(index: int, factors: dict[str, float]) -> PlannedImage:
    """Return the key and the labels of a synthetic face."""
    key, path = f"face-{index:07d}", Path(f"face-{index:07d}.jpg")
    record = Record(key, path, "train", int(factors["expression"]), factors["valence"], factors["arousal"])
    return PlannedImage(key, "train", path.name, record)


def write_image_files(folder: Path, jpegs: Sequence[bytes], items: Sequence[PlannedImage]) -> list[Path]:
    """Write one file per image, as the original implementation reads them."""
    folder.mkdir(parents=True)
    paths = [folder / item.relative_path for item in items]
    for path, jpeg in zip(paths, jpegs, strict=True):
        path.write_bytes(jpeg)
    return paths


def write_shards(
    folder: Path, jpegs: Sequence[bytes], items: Sequence[PlannedImage], image_size: int, images_per_shard: int = 1000
) -> ShardSet:
    """Write shards as `featgan pack` does: all images for training, and some of them also for validation."""
    folder.mkdir(parents=True)
    counts: dict[SplitName, int] = {"train": len(items), "validation": min(len(items), MAX_DISTINCT_FACES)}
    splits = {}
    for name, count in counts.items():
        writer = ShardWriter(folder, name, images_per_shard)
        for item, jpeg in islice(zip(items, jpegs, strict=True), count):
            writer.add_image(item, jpeg)
        splits[name] = writer.finish_split(EXPRESSIONS, (), ())
    return write_manifest(folder, splits, image_size)


def write_manifest(folder: Path, splits: dict[SplitName, SplitManifest], image_size: int) -> ShardSet:
    """Write the manifest of a folder of shards and open it."""
    manifest = ShardManifest(
        featgan=__version__, source="synthetic faces", source_sha256="0" * 64, options={}, image_size=image_size,
        classes=EXPRESSIONS, splits=splits, skipped={},
    )  # fmt: skip
    atomic_write(folder / MANIFEST_FILE, manifest.to_json().encode())
    return ShardSet.open(folder)


class FakeClassifier:
    """The description of a classifier that does not exist."""

    spec, layer, sha256 = "synthetic", "hidden", "0" * 64
    output_dim, task, class_names = 8, "expression", EXPRESSIONS
    head: tuple[Tensor, Tensor] | None = None

    def __init__(self, feature_dim: int) -> None:
        self.feature_dim = feature_dim


def write_features(shards: ShardSet, feature_dim: int, seed: int = 0) -> FeatureCache:
    """Write a cache of normally distributed features, rounded to 4 digits, which text files can store exactly."""
    classifier = FakeClassifier(feature_dim)
    writer = FeatureWriter(shards, FIXTURE_CACHE_NAME, classifier)
    generator = np.random.default_rng(seed)
    for pending in writer.list_pending():
        widths = (feature_dim, classifier.output_dim)
        arrays = (generator.standard_normal((len(pending.rows), 2, width), np.float32).round(4) for width in widths)
        writer.write_shard(pending, *map(torch.from_numpy, arrays))
    return writer.commit()


def repeat_shard(shards: ShardSet, times: int) -> ShardSet:
    """Repeat the only training shard `times` times by hard links, which take no space."""
    split = shards.manifest.splits["train"]
    (shard,) = split.shards
    names = [f"train-{number:05d}.tar" for number in range(times)]
    for name in names[1:]:
        os.link(shards.path / shard.name, shards.path / name)
    path = shards.path / "train.index.npz"
    index = load_index(path)
    columns = {field.name: np.concatenate([getattr(index, field.name)] * times) for field in fields(index)}
    atomic_write(path, serialize_index(SplitIndex(**columns)))
    repeated_split = SplitManifest(
        count=times * split.count,
        classes={name: times * count for name, count in split.classes.items()},
        shards=tuple(ShardFile(**(shard.model_dump() | {"name": name})) for name in names),
        index_sha256=sha256_of(path),
    )
    return write_manifest(shards.path, dict(shards.manifest.splits) | {"train": repeated_split}, shards.image_size)
