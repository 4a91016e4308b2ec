"""A black box over a shard set: features and outputs of every image and of its mirror image, into the cache."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featgan.blackbox.load import BlackBox, load_blackbox
from featgan.blackbox.prefetch import prefetched
from featgan.blackbox.weights import choose_device
from featgan.data.feature_files import MANIFEST, cache_folder
from featgan.data.features import FeatureCache, FeatureWriter, PendingShard
from featgan.data.shards import ShardSet
from featgan.images import to_float
from featgan.progress import Meter, console, meter


def extract(
    shards: Path | str,
    spec: str,
    name: str,
    layer: str | None = None,
    components: int | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    output_kind: str | None = None,
) -> FeatureCache:
    """Fill the cache SHARDS/features/NAME for all splits and return it; shards that are there already are kept.

    `components` K is the number of whitened principal components that are the condition, all features if None.
    `preprocessing` and `output_kind` as in `load_blackbox`. UserError: shards that changed since they were packed, a
    SPEC or layer that cannot be taken, or a cache of that name with another content.
    """
    opened = ShardSet.open(shards)
    box = load_blackbox(spec, layer, choose_device(device), preprocessing, output_kind)
    done = find_done(opened, name, box, components)
    if done is not None:
        console.print(f"{done.path}: extracted already")
        return done
    opened.verify()
    writer = FeatureWriter(opened, name, box, components)
    total = sum(len(opened.split(split)) for split in opened.split_names)
    pending = writer.pending()
    ahead = sum(len(part.rows) for part in pending)
    with meter("extracting features", total, "images", completed=total - ahead) as bar:
        run = Extraction(opened, box, max(1, batch_size), bar)
        for part in pending:
            writer.write(part, *run.compute(part))
    return writer.commit()


def find_done(shards: ShardSet, name: str, box: BlackBox, components: int | None) -> FeatureCache | None:
    """The cache when it is complete and of this box and layer, else None."""
    if not (cache_folder(shards, name) / MANIFEST).is_file():
        return None
    cache = FeatureCache.open(shards, name)
    same_box = (cache.blackbox["sha256"], cache.blackbox["layer"]) == (box.sha256, box.layer)
    same_outputs = (cache.output_kind, cache.class_names) == (box.output_kind, box.class_names)
    return cache if same_box and same_outputs and cache.num_components == components else None


class Extraction:
    """The box at work, with a bar that shows its speed."""

    def __init__(self, shards: ShardSet, box: BlackBox, batch_size: int, bar: Meter) -> None:
        self.shards = shards
        self.box = box
        self.batch_size = batch_size
        self.bar = bar
        self.started = time.monotonic()
        self.num_done = 0

    def compute(self, part: PendingShard) -> tuple[Tensor, Tensor]:
        """Features [n, 2, F] and outputs [n, 2, O] of a shard's images, index 1 of the mirrored ones."""
        features, outputs = zip(*self.batches(part), strict=True)
        return torch.cat(features), torch.cat(outputs)

    def batches(self, part: PendingShard) -> Iterator[tuple[Tensor, Tensor]]:
        split = self.shards.split(part.split)
        rows = [part.rows[start : start + self.batch_size] for start in range(0, len(part.rows), self.batch_size)]
        for images in prefetched(split.decode, rows):
            yield both_sides(self.box, images)
            self.num_done += len(images)
            self.bar.advance(len(images))
            self.bar.note(f"{self.num_done / (time.monotonic() - self.started):.0f} images/s")


def both_sides(box: BlackBox, images: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 [n, 3, S, S] => features [n, 2, F] and outputs [n, 2, O] on the CPU; index 1 is of the mirrored images."""
    as_floats = to_float(images)
    upright, mirrored = box(as_floats), box(as_floats.flip(3))
    features, outputs = (torch.stack(pair, 1).cpu() for pair in zip(upright, mirrored, strict=True))
    return features, outputs
