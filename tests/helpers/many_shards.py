"""A data set of many small shards, for windows of shards and caches that are smaller than the data."""

from pathlib import Path

from featgan.data.packing.pack import pack_shards
from featgan.data.shards.shard_set import ShardSet
from featgan.data.synthetic.dataset import synthesize_faces
from tests.conftest import FakeLinearClassifier, write_features

NUM_SHARDS, IMAGES_PER_SHARD = 36, 4
"""The training shards."""


def pack_many_shards(folder: Path) -> ShardSet:
    """Pack 144 training images into 36 shards, and cache their features as `linear`."""
    synthesize_faces(folder / "faces", 160, 0, 16, workers=1)
    pack_shards(
        "affectnet", folder / "faces", folder / "shards", image_size=16, images_per_shard=IMAGES_PER_SHARD, workers=1
    )
    shards = ShardSet.open(folder / "shards")
    write_features(shards, FakeLinearClassifier(), "linear")
    assert shards.get_split("train").shard_counts == [IMAGES_PER_SHARD] * NUM_SHARDS
    return shards


def largest_shard_bytes(shards: ShardSet) -> int:
    """Return the size of the largest training shard with its features, in bytes."""
    sizes = [
        (shards.path / f"{name}.tar").stat().st_size
        + (shards.path / "features/linear" / f"{name}.features.npy").stat().st_size
        for name in shards.get_split("train").shard_names
    ]
    return max(sizes)
