"""Tests of conditions and batches: flips, order, targets, and training on two data sets."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from featgan.config.loading import parse_config
from featgan.config.schema import DatasetConfig
from featgan.data.conditions import ConditionLayout, build_condition
from featgan.data.loader import BatchDataset, TrainingSet, dataset_for_step, open_loader
from featgan.data.packing.pack import pack_shards
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from featgan.networks.discriminator import DiscriminatorOutput
from featgan.system.images import to_float
from featgan.training.condition_loss import compute_condition_terms, output_loss
from tests.conftest import World


def make_dataset_config(world: World, **condition: object) -> DatasetConfig:
    tree = {"shards": str(world.shards.path), "feature_cache": "linear", "condition": condition}
    return parse_config({"dataset": tree}, "test").dataset


def make_batches(world: World, batch_size: int = 4, seed: int = 0, **options: int) -> BatchDataset:
    condition = build_condition(make_dataset_config(world), world.shards, "train")
    return BatchDataset([TrainingSet(world.shards.get_split("train"), condition, True)], batch_size, 1, seed, **options)


def test_flipped_image_has_the_features_of_the_flipped_image(world: World) -> None:
    batches = make_batches(world)
    num_flipped = 0
    for step in range(10):
        batch = batches[step]
        features, _ = world.classifier(to_float(batch.images))
        torch.testing.assert_close(features, batch.condition, atol=1e-4, rtol=1e-4)
        num_flipped += int(batches.global_rows(0, step)[1].sum())
    assert 5 < num_flipped < 35


def test_epoch_contains_every_image_once(world: World) -> None:
    batches = make_batches(world, batch_size=5)
    count = len(world.shards.get_split("train"))
    rows = np.concatenate([batches.global_rows(0, step)[0] for step in range(3 * count // 5 + 1)])
    for epoch in range(3):
        assert sorted(rows[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert list(rows[:count]) != list(rows[count : 2 * count])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_all_processes_together_use_every_image_once_per_epoch(world: World, world_size: int, num_workers: int) -> None:
    split = world.shards.get_split("train")
    condition = build_condition(make_dataset_config(world), world.shards, "train")
    training_set, num_steps = TrainingSet(split, condition, False), 2 * len(split) // 4
    assert num_steps * 4 == 2 * len(split)
    counts: Counter[bytes] = Counter()
    for rank in range(world_size):
        local_batches = BatchDataset([training_set], 4, 1, 0, rank, world_size)
        with open_loader(local_batches, 0, num_steps, num_workers) as batches:
            counts.update(image.numpy().tobytes() for batch in batches for image in batch.images)
    expected = [image.numpy().tobytes() for image in split.decode(np.arange(len(split)))]
    assert len(set(expected)) == len(split) and counts == dict.fromkeys(expected, 2)


def test_ranks_share_the_global_batch(world: World) -> None:
    global_batch = make_batches(world)[3]
    halves = [make_batches(world, rank=rank, world_size=2)[3] for rank in range(2)]
    for name in ("images", "condition", "condition_target", "alpha"):
        assert torch.equal(torch.cat([getattr(half, name) for half in halves]), getattr(global_batch, name))


def test_targets_are_permuted_source_conditions(world: World) -> None:
    batch = make_batches(world)[0]
    rows = {tuple(row) for row in batch.condition.tolist()}
    assert {tuple(row) for row in batch.condition_target.tolist()} == rows


def test_number_of_workers_does_not_change_batches(world: World) -> None:
    with open_loader(make_batches(world), 2, 5, 0) as batches:
        expected = list(batches)
    with open_loader(make_batches(world), 2, 5, 2) as batches:
        actual = list(batches)
    assert len(expected) == len(actual) == 3
    for first, second in zip(expected, actual, strict=True):
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.condition_target, second.condition_target)


@pytest.mark.parametrize("n_critic", [1, 2, 3, 4, 5, 6])
def test_two_data_sets_alternate_for_both_networks(n_critic: int) -> None:
    datasets = [dataset_for_step(step, n_critic, 2) for step in range(120)]
    assert sum(datasets) == 60 and all(datasets[step] != datasets[step + 1] for step in range(0, 120, 2))
    generator_datasets = datasets[n_critic - 1 :: n_critic]
    assert abs(sum(generator_datasets) - len(generator_datasets) / 2) <= 1


def test_mask_marks_the_data_set_of_the_condition() -> None:
    layout = ConditionLayout((3, 2))
    assert (layout.embedded_dim, layout.estimate_dim) == (7, 5)
    assert layout.embed(torch.ones(1, 3), 0).tolist() == [[1, 1, 1, 0, 0, 1, 0]]
    assert layout.embed(torch.full((1, 2), 0.5), 1).tolist() == [[0, 0, 0, 0.5, 0.5, 0, 1]]
    assert ConditionLayout((3,)).embed(torch.ones(1, 3), 0).tolist() == [[1, 1, 1]]


def test_loss_terms_follow_loss_on(world: World) -> None:
    rows, flipped = np.arange(4), np.zeros(4, bool)
    for loss_on, terms in (
        ("features", {"condition"}),
        ("outputs", {"output"}),
        ("both", {"condition", "output"}),
    ):
        condition = build_condition(make_dataset_config(world, loss_on=loss_on), world.shards, "train")
        values = torch.from_numpy(condition.values(rows, flipped))
        outputs = torch.from_numpy(world.cache.outputs("train", rows, flipped))
        output = DiscriminatorOutput(
            torch.zeros(4, 1, 2, 2), values, 50 * torch.nn.functional.one_hot(outputs.argmax(1), 8).float()
        )
        losses = compute_condition_terms(condition, output, values, outputs)
        assert losses.keys() == terms
        assert all(loss.item() == pytest.approx(0, abs=1e-4) for loss in losses.values())


def test_regression_classifier_outputs_use_the_regression_loss(world: World) -> None:
    condition = build_condition(
        make_dataset_config(world, loss_on="outputs", regression_loss="mse"), world.shards, "train"
    )
    condition = type(condition)(**{**vars(condition), "task": "valence_arousal"})
    assert output_loss(condition, torch.zeros(2, 2), torch.ones(2, 2)).item() == pytest.approx(1)


def test_missing_attribute_is_an_error(world: World) -> None:
    with pytest.raises(UserError, match="no attribute 'Smiling'"):
        build_condition(make_dataset_config(world, kind="attributes", attributes=["Smiling"]), world.shards, "train")


def test_missing_labels_and_components_are_errors(world: World, tmp_path: Path) -> None:
    pack_shards("folder", world.source / "train_set" / "images", tmp_path / "shards", image_size=16, workers=1)
    shards = ShardSet.open(tmp_path / "shards")
    with pytest.raises(UserError, match="no image of split 'train' has the labels that condition.kind 'expression'"):
        build_condition(make_dataset_config(world, kind="expression"), shards, "train")
    with pytest.raises(UserError, match="extract --num-components K"):
        build_condition(make_dataset_config(world, encoding="components"), world.shards, "train")
