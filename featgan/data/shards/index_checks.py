"""Checks of an index against the manifest of its shards."""

import hashlib
from collections.abc import Callable

import numpy as np

from featgan.data.shards.index import SplitIndex
from featgan.data.shards.manifest import ShardManifest, SplitManifest, Transform
from featgan.system.limits import MAX_IMAGE_BYTES, MAX_JPEG_BYTES_PER_PIXEL, MAX_JPEG_HEADER_BYTES

CHECK_VERSION = 1
"""Increased when a check of the content of an index is added, so that indexes are checked again."""

CHUNK_ROWS = 1 << 20
"""Rows that are checked at a time, which bounds memory use."""


def is_valid_index(load: Callable[[], SplitIndex], manifest: ShardManifest, split: SplitManifest) -> bool:
    """Return whether the index has N images inside their shards, and only keys and labels that they can have.

    `load` returns the index. It is called for each chunk: the parts of a mapped index that were read count as memory of
    the process until the map is closed.
    """
    count = len(load().keys)
    if count != split.count:
        return False
    starts = np.cumsum([0, *(shard.count for shard in split.shards)])
    shard_bytes = np.array([shard.bytes for shard in split.shards], np.int64)
    max_bytes = max_image_bytes(manifest.image_size, manifest.transform)
    for start in range(0, max(1, count), CHUNK_ROWS):
        index = load().slice_rows(start, start + CHUNK_ROWS)
        shards = np.searchsorted(starts, np.arange(start, start + len(index.keys)), side="right") - 1
        is_inside = is_valid_position(index.offset, index.size, shard_bytes[shards], max_bytes)
        if not is_inside.all() or not has_valid_labels(index, manifest) or not has_ascii_keys(index):
            return False
    return True


def check_identifier(manifest: ShardManifest, split: SplitManifest) -> str:
    """Return a hash of everything that the result of `is_valid_index` depends on, except the content of the index."""
    text = manifest.model_dump_json(exclude={"skipped", "skipped_files"})
    return hashlib.sha256(f"{CHECK_VERSION} {split.index_sha256} {text}".encode()).hexdigest()


def has_ascii_keys(index: SplitIndex) -> bool:
    """Return whether all keys are ASCII."""
    return not len(index.keys) or int(index.keys.view(np.uint8).max()) < 128


def has_valid_labels(index: SplitIndex, manifest: ShardManifest) -> bool:
    """Return whether the index has one column per attribute and factor, and only values that a label can have."""
    columns = (index.attributes.shape[1], index.factors.shape[1])
    if columns != (len(manifest.attribute_names), len(manifest.factor_names)):
        return False
    has_classes = (index.expression >= -1) & (index.expression < len(manifest.classes))
    has_attributes = (index.attributes >= -1) & (index.attributes <= 1)
    has_infinities = any(np.isinf(values).any() for values in (index.valence, index.arousal, index.factors))
    return bool(has_classes.all() and has_attributes.all() and not has_infinities)


def max_image_bytes(image_size: int, transform: Transform | None) -> int:
    """Return the size in bytes that an image of the shards can have."""
    if transform is not None:
        return MAX_IMAGE_BYTES
    return MAX_JPEG_HEADER_BYTES + MAX_JPEG_BYTES_PER_PIXEL * image_size**2


Integers = np.ndarray | int


def is_valid_position(offset: Integers, size: Integers, shard_bytes: Integers, max_bytes: int) -> np.ndarray:
    """Return whether images [n] are inside their shards and have at most `max_bytes`.

    `shard_bytes` [n] are the sizes of their shards.
    """
    is_plausible = (offset >= 0) & (size > 0) & (size <= max_bytes)
    # The difference cannot overflow, whereas offset + size can.
    return np.asarray(is_plausible & (size <= shard_bytes - offset))
