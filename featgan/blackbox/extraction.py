"""A black box over a shard set: features and outputs of every image and of its mirror image, into the cache."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featgan.blackbox.loading import BlackBox, load_blackbox
from featgan.blackbox.prefetch import prefetched
from featgan.blackbox.weights import choose_device
from featgan.data.feature_cache.cache import FeatureCache, FeatureWriter, PendingShard
from featgan.data.feature_cache.storage import MANIFEST, cache_folder
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from featgan.system.images import to_float
from featgan.system.memory import keep_freed_memory
from featgan.system.progress import Meter, console, meter

ONE_ANSWER = 0.95
"""Share of the images from which one decision for all is remarked on."""

MOST_LOOKED_AT = 10_000

DECODERS = max(1, min(8, (os.cpu_count() or 1) // 2))
"""Threads that decode images; a network on a GPU takes more than one of them can give."""


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

    Files that were damaged since they were written are computed anew.
    `components` K is the number of whitened principal components that are the condition, all features if None.
    `preprocessing` and `output_kind` as in `load_blackbox`. UserError: shards that changed since they were packed, a
    SPEC or layer that cannot be taken, or a cache of that name with another content.
    """
    keep_freed_memory()
    opened = ShardSet.open(shards)
    opened.verify()
    box = load_blackbox(spec, layer, choose_device(device), preprocessing, output_kind)
    known = find_known(opened, name, box)
    if known is not None and known.num_components == components:
        console.print(f"{known.path}: extracted already")
        return known
    if known is not None:
        was, now = (f"{each} components" if each else "all features" for each in (known.num_components, components))
        console.print(f"{known.path}: holds {was}, from now on {now}; runs of the former cannot go on with it")
    writer = FeatureWriter(opened, name, box, components)
    mend(writer)
    total = sum(len(opened.split(split)) for split in opened.split_names)
    pending = writer.pending()
    ahead = sum(len(part.rows) for part in pending)
    with meter("extracting features", total, "images", completed=total - ahead) as bar:
        found = Extraction(opened, box, max(1, batch_size), bar).run(pending)
        for _ in prefetched(lambda shard: writer.write(*shard), found):
            pass
    cache = writer.commit()
    warn_of_one_answer(cache)
    return cache


def warn_of_one_answer(cache: FeatureCache) -> None:
    """A box that decides nearly the same for every image has little to show: better said before hours of training."""
    if cache.output_kind != "expression":
        return
    count = len(cache.arrays["train", "outputs"])
    rows = np.unique(np.linspace(0, count - 1, min(count, MOST_LOOKED_AT)).astype(np.int64))
    decided = np.bincount(cache.outputs("train", rows).argmax(1), minlength=cache.output_dim)
    most = int(decided.argmax())
    if decided[most] >= ONE_ANSWER * len(rows):
        name = cache.class_names[most] if most < len(cache.class_names) else f"output {most + 1}"
        share = decided[most] / len(rows)
        console.print(
            f"{cache.path}: the box decides {name!r} for {share:.0%} of the images; its features may hold little "
            "to show. Check its preprocessing, or fit it for longer",
            markup=False,
        )


def find_known(shards: ShardSet, name: str, box: BlackBox) -> FeatureCache | None:
    """The cache when it is complete, whole, and of this box and layer, else None."""
    if not (cache_folder(shards, name) / MANIFEST).is_file():
        return None
    try:
        cache = FeatureCache.open(shards, name)
        cache.verify()
    except UserError:  # the writer refuses what is another cache, and mends what is damaged
        return None
    same_box = (cache.blackbox["sha256"], cache.blackbox["layer"]) == (box.sha256, box.layer)
    same_outputs = (cache.output_kind, cache.class_names) == (box.output_kind, box.class_names)
    return cache if same_box and same_outputs else None


def mend(writer: FeatureWriter) -> None:
    """Make the files of a complete cache that were damaged since they were written ones that are still to come."""
    bad = writer.drop_damaged()
    if bad:
        more = f" and {len(bad) - 1:,} more files" if len(bad) > 1 else ""
        console.print(f"{writer.path / bad[0]}{more}: not what was extracted; extracting it again", markup=False)


class Extraction:
    """The box at work, with a bar that shows its speed."""

    def __init__(self, shards: ShardSet, box: BlackBox, batch_size: int, bar: Meter) -> None:
        self.shards = shards
        self.box = box
        self.batch_size = batch_size
        self.bar = bar
        self.started = time.monotonic()
        self.num_done = 0

    def run(self, pending: Sequence[PendingShard]) -> Iterator[tuple[PendingShard, Tensor, Tensor]]:
        """Each shard with features [n, 2, F] and outputs [n, 2, O] of its images, index 1 of the mirrored ones.

        Images are decoded ahead, beyond the end of a shard; each once for both sides.
        """
        parts = [(shard, rows) for shard in pending for rows in cut(shard.rows, self.batch_size)]
        found: list[tuple[Tensor, Tensor]] = []
        for (shard, rows), images in zip(parts, prefetched(self.decode, parts, DECODERS), strict=True):
            found.append(both_sides(self.box, images))
            self.count(len(images))
            if rows.stop == shard.rows.stop:
                features, outputs = zip(*found, strict=True)
                yield shard, torch.cat(features), torch.cat(outputs)
                found = []

    def decode(self, part: tuple[PendingShard, range]) -> Tensor:
        shard, rows = part
        return self.shards.split(shard.split).decode(rows)

    def count(self, images: int) -> None:
        self.num_done += images
        self.bar.advance(images)
        self.bar.note(f"{self.num_done / (time.monotonic() - self.started):.0f} images/s")


def cut(rows: range, size: int) -> list[range]:
    """Stretches of at most `size`."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def both_sides(box: BlackBox, images: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 [n, 3, S, S] => features [n, 2, F] and outputs [n, 2, O], on the box's device; index 1 is of the mirrored.

    Bytes travel to the device, floats are made there.
    """
    as_floats = to_float(images.to(box.device))
    upright, mirrored = box(as_floats), box(as_floats.flip(3))
    features, outputs = (torch.stack(pair, 1) for pair in zip(upright, mirrored, strict=True))
    return features, outputs
