"""What the benches work on: drawn faces as JPEG files and as shards, and a cache of made-up features."""

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
from featgan.data.packing.crop import compress
from featgan.data.packing.plan import Item
from featgan.data.packing.writer import ShardWriter
from featgan.data.readers.records import EXPRESSIONS, Record
from featgan.data.shards.index import Index, index_bytes, load_index
from featgan.data.shards.manifest import MANIFEST, Manifest, ShardFile, SplitName, SplitPart
from featgan.data.shards.shard_set import ShardSet
from featgan.data.synthetic.dataset import sample_factors
from featgan.data.synthetic.drawing import draw_face
from featgan.system.files import sha256_of, write_whole

DISTINCT = 200
"""Faces that are drawn; where more images are asked for, they are used again."""

NAME = "made-up"
"""Of the feature cache."""

QUALITY = 95


def draw_faces(count: int, image_size: int, seed: int = 0) -> tuple[list[bytes], list[Item]]:
    """JPEGs as `featgan pack` writes them, and their labels."""
    factors = [sample_factors(np.random.default_rng((seed, index))) for index in range(min(count, DISTINCT))]
    drawn = [compress(Image.fromarray(draw_face(each, image_size)), QUALITY) for each in factors]
    jpegs = [drawn[index % len(drawn)] for index in range(count)]
    return jpegs, [item(index, factors[index % len(factors)]) for index in range(count)]


def item(index: int, factors: dict[str, float]) -> Item:
    """A drawn face's key and labels."""
    key, path = f"face-{index:07d}", Path(f"face-{index:07d}.jpg")
    record = Record(key, path, "train", int(factors["expression"]), factors["valence"], factors["arousal"])
    return Item(key, "train", path.name, record)


def write_files(folder: Path, jpegs: Sequence[bytes], items: Sequence[Item]) -> list[Path]:
    """One file an image, as the ancestor reads them."""
    folder.mkdir(parents=True)
    paths = [folder / each.source for each in items]
    for path, jpeg in zip(paths, jpegs, strict=True):
        path.write_bytes(jpeg)
    return paths


def write_shards(
    folder: Path, jpegs: Sequence[bytes], items: Sequence[Item], image_size: int, images_per_shard: int = 1000
) -> ShardSet:
    """The same images as `featgan pack` would leave them, all for training; a few of them once more for validation."""
    folder.mkdir(parents=True)
    shares: dict[SplitName, int] = {"train": len(items), "validation": min(len(items), DISTINCT)}
    parts = {}
    for name, count in shares.items():
        writer = ShardWriter(folder, name, images_per_shard)
        for each, jpeg in islice(zip(items, jpegs, strict=True), count):
            writer.add(each, jpeg)
        parts[name] = writer.finish(EXPRESSIONS, (), ())
    return write_manifest(folder, parts, image_size)


def write_manifest(folder: Path, parts: dict[SplitName, SplitPart], image_size: int) -> ShardSet:
    """End a folder of shards."""
    manifest = Manifest(
        featgan=__version__, source="drawn faces", source_sha256="0" * 64, options={}, image_size=image_size,
        classes=EXPRESSIONS, splits=parts, skipped={},
    )  # fmt: skip
    write_whole(folder / MANIFEST, manifest.text().encode())
    return ShardSet.open(folder)


class MadeUpBox:
    """A black box by name only."""

    spec, layer, sha256 = "made-up", "hidden", "0" * 64
    output_dim, output_kind, class_names = 8, "expression", EXPRESSIONS
    head: tuple[Tensor, Tensor] | None = None

    def __init__(self, feature_dim: int) -> None:
        self.feature_dim = feature_dim


def write_features(shards: ShardSet, feature_dim: int, seed: int = 0) -> FeatureCache:
    """A cache of normal numbers, four digits each, so that text can hold the same."""
    box = MadeUpBox(feature_dim)
    writer = FeatureWriter(shards, NAME, box)
    generator = np.random.default_rng(seed)
    for pending in writer.pending():
        widths = (feature_dim, box.output_dim)
        drawn = (generator.standard_normal((len(pending.rows), 2, width), np.float32).round(4) for width in widths)
        writer.write(pending, *map(torch.from_numpy, drawn))
    return writer.commit()


def repeat_shard(shards: ShardSet, times: int) -> ShardSet:
    """The training shard `times` times under other names: links, so that many images cost little."""
    part = shards.parts.splits["train"]
    (only,) = part.shards
    names = [f"train-{number:05d}.tar" for number in range(times)]
    for name in names[1:]:
        os.link(shards.path / only.name, shards.path / name)
    path = shards.path / "train.index.npz"
    index = load_index(path)
    columns = {field.name: np.concatenate([getattr(index, field.name)] * times) for field in fields(index)}
    write_whole(path, index_bytes(Index(**columns)))
    repeated = SplitPart(
        count=times * part.count,
        classes={name: times * count for name, count in part.classes.items()},
        shards=tuple(ShardFile(**(only.model_dump() | {"name": name})) for name in names),
        index_sha256=sha256_of(path),
    )
    return write_manifest(shards.path, dict(shards.parts.splits) | {"train": repeated}, shards.image_size)
