"""A step's batch: the fast way gives what one image after the other, by the plainest means, gives."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from featgan.config.loading import validate
from featgan.data import loader
from featgan.data.conditions import build_condition
from featgan.data.loader import BatchStream, Source
from featgan.data.shards.shard_set import Split
from tests.conftest import World


def decode_plainly(split: Split, rows: np.ndarray, mirrored: np.ndarray) -> Tensor:
    """uint8 [n, 3, S, S], by PIL."""
    images = [np.asarray(Image.open(io.BytesIO(split.read_jpeg(int(row)))).convert("RGB")) for row in rows]
    sided = [image[:, ::-1] if side else image for image, side in zip(images, mirrored, strict=True)]
    return torch.from_numpy(np.stack(sided).transpose(0, 3, 1, 2).copy())


def features_plainly(world: World, rows: np.ndarray, mirrored: np.ndarray) -> Tensor:
    """float [n, F], out of the files joined end to end."""
    names = world.shards.split("train").shard_names
    whole = np.concatenate([np.load(world.cache.path / f"{name}.features.npy") for name in names])
    return torch.stack([torch.from_numpy(whole[row, int(side)]) for row, side in zip(rows, mirrored, strict=True)])


@pytest.mark.parametrize("seed", range(3))
def test_a_batch_is_what_the_plain_way_gives(world: World, seed: int) -> None:
    tree = {"shards": str(world.shards.path), "features": "stand-in"}
    condition = build_condition(validate({"dataset": tree}, "test").dataset, world.shards, "train")
    split = world.shards.split("train")
    batches = BatchStream([Source(split, condition, True)], 16, 1, seed)
    step = int(np.random.default_rng(seed).integers(100))
    batch, (rows, mirrored) = batches[step], batches.global_rows(0, step)
    assert 0 < mirrored.sum() < len(rows)
    assert torch.equal(batch.images, decode_plainly(split, rows, mirrored))
    features = features_plainly(world, rows, mirrored)
    assert torch.equal(batch.condition, features)
    order = loader.stream(seed, loader.TARGET, step).permutation(len(rows))
    assert torch.equal(batch.condition_target, features[torch.from_numpy(order)])


def test_an_epoch_border_in_a_batch_skips_and_repeats_nothing(world: World) -> None:
    condition = build_condition(
        validate({"dataset": {"shards": str(world.shards.path), "features": "stand-in"}}, "test").dataset,
        world.shards, "train",
    )  # fmt: skip
    batches = BatchStream([Source(world.shards.split("train"), condition, True)], 200, 1, 3)
    rows = np.concatenate([batches.global_rows(0, step)[0] for step in range(3)])
    count = len(condition.rows)
    assert count < 200
    for epoch in range(len(rows) // count):
        assert sorted(rows[epoch * count : (epoch + 1) * count]) == sorted(condition.rows)


def test_a_damaged_image_among_good_ones_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    split = world.shards.split("train")
    read = split.read

    def read_damaged(row: int) -> bytearray:
        content = read(row)
        return content[: len(content) // 4] if row == 5 else content

    monkeypatch.setattr(split, "read", read_damaged)
    with pytest.raises(Exception, match=f"{split.keys[5]}.jpg: the JPEG is damaged"):
        split.decode(np.arange(12))
