"""What a box is fitted on: the images of a split that carry the target, and the target."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from featgan.blackbox.prefetch import prefetched
from featgan.data.shards.shard_set import ShardSet, Split
from featgan.errors import UserError
from featgan.system.progress import meter

MOST_BYTES_IN_MEMORY = 1 << 30
"""Images that take more are decoded anew in every epoch."""

CHUNK = 256
"""Images decoded at a time."""


class Examples:
    """N images with the targets: class codes int64 [N], or attributes (0, 1) or numbers float32 [N, D]."""

    def __init__(self, split: Split, rows: np.ndarray, targets: Tensor, image_size: int) -> None:
        self.split = split
        self.rows = rows
        self.targets = targets
        self.image_size = image_size
        fits = len(rows) * 3 * image_size**2 <= MOST_BYTES_IN_MEMORY
        self.images = self.decode_all() if fits else None

    def __len__(self) -> int:
        return len(self.rows)

    def decode_all(self) -> Tensor:
        """uint8 [N, 3, S, S]."""
        images = torch.empty(len(self), 3, self.image_size, self.image_size, dtype=torch.uint8)
        with meter(f"reading {self.split.name}", len(self), "images") as bar:
            for start in range(0, len(self), CHUNK):
                places = torch.arange(start, min(start + CHUNK, len(self)))
                images[places] = self.decode(places)
                bar.advance(len(places))
        return images

    def decode(self, places: Tensor) -> Tensor:
        """Images at these places as uint8 [n, 3, S, S], resized where the shards have another size."""
        images = self.split.decode(self.rows[places.numpy()])
        if images.shape[-1] == self.image_size:
            return images
        size = (self.image_size, self.image_size)
        resized = F.interpolate(images.float(), size, mode="bilinear", antialias=True, align_corners=False)
        return resized.round().clamp(0, 255).to(torch.uint8)

    def batches(self, places: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """uint8 images and their targets for each tensor of places."""
        if self.images is not None:
            decoded: Iterator[Tensor] = (self.images[part] for part in places)
        else:
            decoded = prefetched(self.decode, places)
        for part, images in zip(places, decoded, strict=True):
            yield images, self.targets[part]


def output_names(shards: ShardSet, target: str) -> tuple[str, ...]:
    """What the outputs of a box with this target are; UserError when the shards lack it."""
    names = {
        "expression": shards.classes,
        "valence_arousal": ("valence", "arousal"),
        "attributes": shards.attribute_names,
        "factors": shards.factor_names,
    }
    if target not in names:
        raise UserError(f"target {target!r}: it can be {', '.join(names)}")
    if not names[target]:
        raise UserError(f"{shards.path}: the shards carry no {target}; choose another --target")
    return names[target]


def load_examples(shards: ShardSet, split_name: str, target: str, image_size: int) -> Examples:
    """The images of a split that carry the target; UserError when fewer than two do, or all are one class."""
    split = shards.split(split_name)
    if target == "expression":
        found = split.expression.astype(np.int64)
        usable: np.ndarray = (found >= 0) & (found < len(shards.classes))
    elif target == "attributes":
        found = split.attributes.astype(np.float32)
        usable = np.asarray((found >= 0).all(1))
    else:
        both = np.stack([split.valence, split.arousal], 1)
        found = np.asarray(both if target == "valence_arousal" else split.factors, np.float32)
        usable = np.asarray(np.isfinite(found).all(1))
    rows = np.flatnonzero(usable)
    if len(rows) < 2:
        what = target.replace("_", " and ")
        raise UserError(f"{shards.path}: {len(rows)} images of {split_name} carry {what}; choose another --target")
    if target == "expression" and split_name == "train" and len(np.unique(found[rows])) == 1:
        only = shards.classes[int(found[rows[0]])]
        raise UserError(f"{shards.path}: all images of {split_name} are {only!r}; a box learns from two classes")
    return Examples(split, rows, torch.from_numpy(found[rows]), image_size)
