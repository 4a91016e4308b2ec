"""Conditions and batches: flips, order, targets, and data sets side by side."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from featgan.config.loading import validate
from featgan.config.schema import DatasetConfig
from featgan.data.conditions import ConditionLayout, build_condition
from featgan.data.loader import BatchStream, Source, choose_dataset, open_loader
from featgan.data.packing.pack import pack
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from featgan.networks.discriminator import Judgement
from featgan.system.images import to_float
from featgan.training.condition_loss import condition_losses, output_loss
from tests.conftest import World


def dataset(world: World, **condition: object) -> DatasetConfig:
    tree = {"shards": str(world.shards.path), "features": "stand-in", "condition": condition}
    return validate({"dataset": tree}, "test").dataset


def stream(world: World, batch_size: int = 4, seed: int = 0, **more: int) -> BatchStream:
    condition = build_condition(dataset(world), world.shards, "train")
    return BatchStream([Source(world.shards.split("train"), condition, True)], batch_size, 1, seed, **more)


def test_a_mirrored_image_has_the_mirrored_images_features(world: World) -> None:
    batches = stream(world)
    mirrored = 0
    for step in range(10):
        batch = batches[step]
        features, _ = world.box(to_float(batch.images))
        torch.testing.assert_close(features, batch.condition, atol=1e-4, rtol=1e-4)
        mirrored += int(batches.global_rows(0, step)[1].sum())
    assert 5 < mirrored < 35


def test_an_epoch_shows_every_image_once(world: World) -> None:
    batches = stream(world, batch_size=5)
    count = len(world.shards.split("train"))
    rows = np.concatenate([batches.global_rows(0, step)[0] for step in range(3 * count // 5 + 1)])
    for epoch in range(3):
        assert sorted(rows[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert list(rows[:count]) != list(rows[count : 2 * count])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_and_workers_together_show_every_image_once_an_epoch(
    world: World, world_size: int, num_workers: int
) -> None:
    split = world.shards.split("train")
    condition = build_condition(dataset(world), world.shards, "train")
    source, steps = Source(split, condition, False), 2 * len(split) // 4
    assert steps * 4 == 2 * len(split)
    shown: Counter[bytes] = Counter()
    for rank in range(world_size):
        own = BatchStream([source], 4, 1, 0, rank, world_size)
        with open_loader(own, 0, steps, num_workers) as batches:
            shown.update(image.numpy().tobytes() for batch in batches for image in batch.images)
    expected = [image.numpy().tobytes() for image in split.decode(np.arange(len(split)))]
    assert len(set(expected)) == len(split) and shown == dict.fromkeys(expected, 2)


def test_ranks_share_the_global_batch(world: World) -> None:
    whole = stream(world)[3]
    halves = [stream(world, rank=rank, world_size=2)[3] for rank in range(2)]
    for name in ("images", "condition", "condition_target", "alpha"):
        assert torch.equal(torch.cat([getattr(half, name) for half in halves]), getattr(whole, name))


def test_targets_are_the_batchs_own_conditions(world: World) -> None:
    batch = stream(world)[0]
    rows = {tuple(row) for row in batch.condition.tolist()}
    assert {tuple(row) for row in batch.condition_target.tolist()} == rows


def test_workers_change_nothing(world: World) -> None:
    with open_loader(stream(world), 2, 5, 0) as batches:
        alone = list(batches)
    with open_loader(stream(world), 2, 5, 2) as batches:
        helped = list(batches)
    assert len(alone) == len(helped) == 3
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.condition_target, other.condition_target)


@pytest.mark.parametrize("critic_steps", [1, 2, 3, 4, 5, 6])
def test_two_data_sets_alternate_for_both_players(critic_steps: int) -> None:
    chosen = [choose_dataset(step, critic_steps, 2) for step in range(120)]
    assert sum(chosen) == 60 and all(chosen[step] != chosen[step + 1] for step in range(0, 120, 2))
    generators = chosen[critic_steps - 1 :: critic_steps]
    assert abs(sum(generators) - len(generators) / 2) <= 1


def test_the_mask_says_which_part_is_known() -> None:
    layout = ConditionLayout((3, 2))
    assert (layout.generator_dim, layout.estimate_dim) == (7, 5)
    assert layout.embed(torch.ones(1, 3), 0).tolist() == [[1, 1, 1, 0, 0, 1, 0]]
    assert layout.embed(torch.full((1, 2), 0.5), 1).tolist() == [[0, 0, 0, 0.5, 0.5, 0, 1]]
    assert ConditionLayout((3,)).embed(torch.ones(1, 3), 0).tolist() == [[1, 1, 1]]


def test_each_objective_scores_its_parts(world: World) -> None:
    rows, mirrored = np.arange(4), np.zeros(4, bool)
    for objective, parts in (("actv", {"condition"}), ("pred", {"prediction"}), ("both", {"condition", "prediction"})):
        condition = build_condition(dataset(world, objective=objective), world.shards, "train")
        values = torch.from_numpy(condition.values(rows, mirrored))
        outputs = torch.from_numpy(world.cache.outputs("train", rows, mirrored))
        judgement = Judgement(
            torch.zeros(4, 1, 2, 2), values, 50 * torch.nn.functional.one_hot(outputs.argmax(1), 8).float()
        )
        found = condition_losses(condition, judgement, values, outputs)
        assert found.keys() == parts
        assert all(loss.item() == pytest.approx(0, abs=1e-4) for loss in found.values())


def test_regression_box_predictions_use_the_regression_loss(world: World) -> None:
    condition = build_condition(dataset(world, objective="pred", regression="mse"), world.shards, "train")
    condition = type(condition)(**{**vars(condition), "output_kind": "valence_arousal"})
    assert output_loss(condition, torch.zeros(2, 2), torch.ones(2, 2)).item() == pytest.approx(1)


def test_labels_that_are_not_there_are_refused(world: World) -> None:
    with pytest.raises(UserError, match="no attribute 'Smiling'"):
        build_condition(dataset(world, kind="attributes", attributes=["Smiling"]), world.shards, "train")


def test_expressions_are_missed_where_images_have_no_class(world: World, tmp_path: Path) -> None:
    pack("folder", world.source / "train_set" / "images", tmp_path / "shards", image_size=16, workers=1)
    shards = ShardSet.open(tmp_path / "shards")
    with pytest.raises(UserError, match="no image of split 'train' has the labels of condition.kind 'expression'"):
        build_condition(dataset(world, kind="expression"), shards, "train")
    with pytest.raises(UserError, match="extract --components K"):
        build_condition(dataset(world, encoding="components"), world.shards, "train")
