"""Tests of the batch of a step against a reference that reads one image after the other."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from featgan.config.loading import parse_config
from featgan.data.conditions import build_condition
from featgan.data.loader import BatchDataset, TrainingSet
from featgan.data.order import TARGET_STREAM, EpochOrder, random_stream
from featgan.data.packing.pack import pack_shards
from featgan.data.shards.shard_set import ShardSet
from featgan.data.shards.split import Split
from featgan.errors import UserError
from featgan.training.state import open_data
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
    with pytest.raises(UserError, match=f"{split.keys_of([5])[0]}.jpg: the JPEG is corrupted"):
        split.decode(np.arange(12))


@pytest.fixture(scope="module")
def training_set(world: World, tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    """Pack the images in shards of 5; the classes of some images are unknown, among them all of one shard."""
    path = tmp_path_factory.mktemp("small") / "shards"
    pack_shards("affectnet", world.source, path, image_size=16, images_per_shard=5, workers=1)
    shards = ShardSet.open(path)
    split = shards.get_split("train")
    split.expression = np.array(split.expression)
    split.expression[3:7], split.expression[10:15] = -1, -1
    tree = {"shards": str(path), "condition": {"kind": "expression"}}
    condition = build_condition(parse_config({"dataset": tree}, "test").dataset, shards, "train")
    return TrainingSet(split, condition, True)


def test_selected_images_are_counted_per_shard(training_set: TrainingSet) -> None:
    split = training_set.split
    expected = np.bincount(split.shard_of(np.asarray(training_set.condition.rows)), minlength=len(split.shard_counts))
    assert training_set.selected_counts.tolist() == expected.tolist()
    assert expected[:4].tolist() == [3, 3, 0, 5] and expected.sum() == len(training_set)


def test_training_uses_the_window_of_the_configuration(world: World, tmp_path: Path) -> None:
    config = world.make_config(tmp_path, dataset={"shuffle_window": 1})
    (windowed,) = open_data(config)[1]
    assert windowed.shuffle_window == 1
    rows = BatchDataset([windowed], 4, 1, 0).global_rows(0, 0)[0]
    assert len(set(windowed.split.shard_of(rows))) == 1


def epoch_by_epoch(training_set: TrainingSet, dataset: int, seed: int, num_batches: int, batch_size: int) -> np.ndarray:
    """Return the rows of the first global batches [num_batches, B] from whole epochs, as a reference."""
    epochs = []
    for epoch in range(num_batches * batch_size // len(training_set) + 1):
        order = EpochOrder(seed, dataset, epoch, training_set.selected_counts, training_set.shuffle_window)
        epochs.append(training_set.condition.rows[order[:]])
    return np.concatenate(epochs)[: num_batches * batch_size].reshape(num_batches, batch_size)


@pytest.mark.parametrize("window", [0, 1, 3])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_batches_follow_the_order_of_the_epochs(training_set: TrainingSet, window: int, world_size: int) -> None:
    windowed = replace(training_set, shuffle_window=window)
    num_batches, batch_size = 20, 8
    expected = epoch_by_epoch(windowed, 0, 3, num_batches, batch_size)
    assert len(windowed) % batch_size and num_batches * batch_size > 2 * len(windowed)  # some batches span two epochs
    for rank in range(world_size):
        batches = BatchDataset([windowed], batch_size, 1, 3, rank, world_size)
        for step in range(num_batches):
            rows, flipped = batches.global_rows(0, step)
            assert rows.tolist() == expected[step].tolist()
            local = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
            images = training_set.split.decode(rows[local], flipped[local])
            assert torch.equal(batches[step].images, images)


@pytest.mark.parametrize("window", [0, 2])
def test_batches_of_two_data_sets_follow_their_own_orders(training_set: TrainingSet, window: int) -> None:
    sets = [replace(training_set, shuffle_window=window), replace(training_set, shuffle_window=1)]
    expected = [epoch_by_epoch(windowed, dataset, 5, 12, 8) for dataset, windowed in enumerate(sets)]
    for n_critic in (1, 2):
        batches = BatchDataset(sets, 8, n_critic, 5)
        for step in range(24):
            dataset = batches[step].dataset
            rows = batches.global_rows(dataset, batches.batch_index(step))[0]
            assert rows.tolist() == expected[dataset][step // 2].tolist()


@pytest.mark.parametrize("window", [1, 3])
def test_batch_does_not_depend_on_the_step_at_which_training_resumed(training_set: TrainingSet, window: int) -> None:
    windowed = replace(training_set, shuffle_window=window)
    whole = BatchDataset([windowed], 8, 1, 0)
    expected = [whole[step] for step in range(12)]
    for first_step in range(12):
        resumed = BatchDataset([windowed], 8, 1, 0)
        for step in range(first_step, 12):
            for name, tensor in resumed[step].named_tensors().items():
                assert torch.equal(tensor, expected[step].named_tensors()[name])
