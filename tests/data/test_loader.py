"""Tests of the batch of a step against a reference that reads one image after the other."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from featgan.config.loading import parse_config
from featgan.data.conditions import build_condition
from featgan.data.loader import BatchDataset, TrainingSet
from featgan.data.order import TARGET_STREAM, random_stream
from featgan.data.shards.split import Split
from featgan.errors import UserError
from tests.conftest import World


def decode_with_pil(split: Split, rows: np.ndarray, flipped: np.ndarray) -> Tensor:
    """Decode images with PIL, uint8 [n, 3, S, S]."""
    images = [np.asarray(Image.open(io.BytesIO(split.read_jpeg(int(row)))).convert("RGB")) for row in rows]
    oriented = [image[:, ::-1] if is_flipped else image for image, is_flipped in zip(images, flipped, strict=True)]
    return torch.from_numpy(np.stack(oriented).transpose(0, 3, 1, 2).copy())


def read_features_directly(world: World, rows: np.ndarray, flipped: np.ndarray) -> Tensor:
    """Read features from the concatenated files of the cache, float [n, F]."""
    names = world.shards.get_split("train").shard_names
    features = np.concatenate([np.load(world.cache.path / f"{name}.features.npy") for name in names])
    return torch.from_numpy(features[rows, flipped.astype(int)])


@pytest.mark.parametrize("seed", range(3))
def test_batch_equals_the_reference_batch(world: World, seed: int) -> None:
    tree = {"shards": str(world.shards.path), "feature_cache": "linear"}
    condition = build_condition(parse_config({"dataset": tree}, "test").dataset, world.shards, "train")
    split = world.shards.get_split("train")
    batches = BatchDataset([TrainingSet(split, condition, True)], 16, 1, seed)
    step = int(np.random.default_rng(seed).integers(100))
    batch, (rows, flipped) = batches[step], batches.global_rows(0, step)
    assert 0 < flipped.sum() < len(rows)
    assert torch.equal(batch.images, decode_with_pil(split, rows, flipped))
    features = read_features_directly(world, rows, flipped)
    assert torch.equal(batch.condition, features)
    order = random_stream(seed, TARGET_STREAM, step).permutation(len(rows))
    assert torch.equal(batch.condition_target, features[torch.from_numpy(order)])


def test_batch_across_two_epochs_skips_and_repeats_no_row(world: World) -> None:
    condition = build_condition(
        parse_config({"dataset": {"shards": str(world.shards.path), "feature_cache": "linear"}}, "test").dataset,
        world.shards, "train",
    )  # fmt: skip
    batches = BatchDataset([TrainingSet(world.shards.get_split("train"), condition, True)], 200, 1, 3)
    rows = np.concatenate([batches.global_rows(0, step)[0] for step in range(3)])
    count = len(condition.rows)
    assert count < 200
    for epoch in range(len(rows) // count):
        assert sorted(rows[epoch * count : (epoch + 1) * count]) == sorted(condition.rows)


def test_error_names_the_corrupted_image_of_a_batch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    split = world.shards.get_split("train")
    read_bytes = split.read_bytes

    def read_corrupted(row: int) -> bytearray:
        content = read_bytes(row)
        return content[: len(content) // 4] if row == 5 else content

    monkeypatch.setattr(split, "read_bytes", read_corrupted)
    with pytest.raises(UserError, match=f"{split.keys[5]}.jpg: the JPEG is corrupted"):
        split.decode(np.arange(12))
