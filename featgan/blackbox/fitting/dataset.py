"""The training data of a classifier: the images of a split that have the required label, and these labels."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from featgan.blackbox.prefetch import prefetch_map
from featgan.data.shards.shard_set import ShardSet
from featgan.data.shards.split import Split
from featgan.errors import UserError
from featgan.system.progress import progress_bar

MAX_BYTES_IN_MEMORY = 1 << 30
"""A larger dataset is decoded again in every epoch."""

IMAGES_PER_CHUNK = 256
"""Number of images decoded at a time."""


class ClassifierDataset:
    """N images with targets: class codes int64 [N], or attributes (0 or 1) or real values float32 [N, D]."""

    def __init__(self, split: Split, rows: np.ndarray, targets: Tensor, image_size: int) -> None:
        self.split = split
        self.rows = rows
        self.targets = targets
        self.image_size = image_size
        fits = len(rows) * 3 * image_size**2 <= MAX_BYTES_IN_MEMORY
        self.images = self.decode_all() if fits else None

    def __len__(self) -> int:
        return len(self.rows)

    def decode_all(self) -> Tensor:
        """Decode all images: uint8 [N, 3, S, S]."""
        images = torch.empty(len(self), 3, self.image_size, self.image_size, dtype=torch.uint8)
        with progress_bar(f"reading {self.split.name}", len(self), "images") as bar:
            for start in range(0, len(self), IMAGES_PER_CHUNK):
                indices = torch.arange(start, min(start + IMAGES_PER_CHUNK, len(self)))
                images[indices] = self.decode(indices)
                bar.advance(len(indices))
        return images

    def decode(self, indices: Tensor) -> Tensor:
        """Decode the images at these indices, resized if the shards have another size: uint8 [n, 3, S, S]."""
        images = self.split.decode(self.rows[indices.numpy()])
        if images.shape[-1] == self.image_size:
            return images
        size = (self.image_size, self.image_size)
        resized = F.interpolate(images.float(), size, mode="bilinear", antialias=True, align_corners=False)
        return resized.round().clamp(0, 255).to(torch.uint8)

    def iterate_batches(self, batch_indices: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield uint8 images and their targets for each tensor of indices."""
        if self.images is not None:
            decoded: Iterator[Tensor] = (self.images[indices] for indices in batch_indices)
        else:
            decoded = prefetch_map(self.decode, batch_indices)
        for part, images in zip(batch_indices, decoded, strict=True):
            yield images, self.targets[part]


def target_output_names(shards: ShardSet, task: str) -> tuple[str, ...]:
    """Return the output names of a classifier for this task; raises UserError if the shards lack its labels."""
    names = {
        "expression": shards.classes,
        "valence_arousal": ("valence", "arousal"),
        "attributes": shards.attribute_names,
        "factors": shards.factor_names,
    }
    if task not in names:
        raise UserError(f"--task {task}: unknown task; use one of {', '.join(names)}")
    if not names[task]:
        raise UserError(f"{shards.location}: the shards have no labels for the task {task}; choose another --task")
    return names[task]


def load_classifier_dataset(shards: ShardSet, split_name: str, task: str, image_size: int) -> ClassifierDataset:
    """Load the images of a split that have the labels of the task.

    Raises UserError if fewer than two images have them, or if all training images belong to one class.
    """
    split = shards.get_split(split_name)
    if task == "expression":
        values = split.expression.astype(np.int64)
        usable: np.ndarray = (values >= 0) & (values < len(shards.classes))
    elif task == "attributes":
        values = split.attributes.astype(np.float32)
        usable = np.asarray((values >= 0).all(1))
    else:
        valence_and_arousal = np.stack([split.valence, split.arousal], 1)
        values = np.asarray(valence_and_arousal if task == "valence_arousal" else split.factors, np.float32)
        usable = np.asarray(np.isfinite(values).all(1))
    rows = np.flatnonzero(usable)
    if len(rows) < 2:
        raise UserError(
            f"{shards.location}: only {len(rows)} images of split {split_name} have labels for the task {task}, "
            "but 2 are needed; choose another --task"
        )
    if task == "expression" and split_name == "train" and len(np.unique(values[rows])) == 1:
        only_class = shards.classes[int(values[rows[0]])]
        raise UserError(
            f"{shards.location}: all images of split {split_name} belong to class {only_class!r}, "
            "but 2 classes are needed; choose another --task"
        )
    return ClassifierDataset(split, rows, torch.from_numpy(values[rows]), image_size)
