"""Checks of an index against the manifest of its shards."""

import numpy as np

from featgan.data.shards.index import SplitIndex
from featgan.data.shards.manifest import ShardManifest
from featgan.system.limits import MAX_IMAGE_BYTES, MAX_JPEG_BYTES_PER_PIXEL, MAX_JPEG_HEADER_BYTES


def has_valid_labels(index: SplitIndex, manifest: ShardManifest) -> bool:
    """Return whether the index has one column per attribute and factor, and only values that a label can have."""
    columns = (index.attributes.shape[1], index.factors.shape[1])
    if columns != (len(manifest.attribute_names), len(manifest.factor_names)):
        return False
    has_classes = (index.expression >= -1) & (index.expression < len(manifest.classes))
    has_attributes = (index.attributes >= -1) & (index.attributes <= 1)
    has_infinities = any(np.isinf(values).any() for values in (index.valence, index.arousal, index.factors))
    return bool(has_classes.all() and has_attributes.all() and not has_infinities)


def max_image_bytes(manifest: ShardManifest) -> int:
    """Return the size in bytes that an image of the shards can have."""
    if manifest.transform is not None:
        return MAX_IMAGE_BYTES
    return MAX_JPEG_HEADER_BYTES + MAX_JPEG_BYTES_PER_PIXEL * manifest.image_size**2


def is_within_shards(index: SplitIndex, limits: np.ndarray, max_bytes: int) -> bool:
    """Return whether the index has N images, each inside its shard and with at most `max_bytes`.

    `limits` [N] are the sizes of the shards in bytes.
    """
    if len(index.keys) != len(limits):
        return False
    is_plausible = (index.offset >= 0) & (index.size > 0) & (index.size <= max_bytes)
    # The difference cannot overflow, whereas offset + size can.
    return bool((is_plausible & (index.size <= limits - index.offset)).all())
