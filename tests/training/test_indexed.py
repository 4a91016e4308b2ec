"""Training on tars that stay where they are, and every command that uses such shards and their runs."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from featgan.cli.main import cli
from featgan.data.packing.indexing import index_shards
from featgan.data.shards.shard_set import ShardSet
from featgan.training.train import train
from tests.conftest import World, read_checkpoint_tensors, write_features

LABELS = "expression=json:expression,valence=json:valence,arousal=json:arousal"


@pytest.fixture
def indexed(world: World, tmp_path: Path) -> ShardSet:
    """Index the tars of the packed shards, whose images have the requested size already."""
    options = {"label": LABELS, "classes": ",".join(f"{code}={name}" for code, name in enumerate(world.shards.classes))}
    index_shards([str(world.shards.path)], tmp_path / "index", image_size=16, workers=1, layout_options=options)
    return ShardSet.open(tmp_path / "index")


def test_training_on_indexed_tars_equals_training_on_packed_ones(
    world: World, indexed: ShardSet, tmp_path: Path
) -> None:
    assert indexed.classes == world.shards.classes
    for name in ("train", "validation"):
        split, packed = indexed.get_split(name), world.shards.get_split(name)
        assert np.array_equal(split.decode(np.arange(len(split))), packed.decode(np.arange(len(packed))))
        for column in ("expression", "valence", "arousal"):
            assert np.array_equal(getattr(split, column), getattr(packed, column), equal_nan=column != "expression")
    cache = write_features(indexed, world.classifier, "linear")
    assert np.array_equal(cache.features("train", [3, 0]), world.cache.features("train", [3, 0]))
    runs = {}
    for name, shards in (("indexed", indexed), ("packed", world.shards)):
        config = world.make_config(tmp_path / name, dataset={"shards": str(shards.path)})
        train(config)
        runs[name] = read_checkpoint_tensors(config.run_dir, 4, "generator_ema")
    assert all(np.array_equal(runs["indexed"][key], runs["packed"][key]) for key in runs["indexed"] | runs["packed"])


def test_every_command_accepts_indexed_tars(world: World, indexed: ShardSet, tmp_path: Path) -> None:
    runner, shards, run = CliRunner(), str(indexed.path), str(tmp_path / "run")

    def call(*arguments: object) -> str:
        result = runner.invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    classifier = tmp_path / "classifier"
    call("blackbox", "fit", "--shards", shards, "--out", classifier, "--epochs", 1, "--width", 0.125)
    call("extract", "--shards", shards, "--blackbox", classifier, "--cache-name", "fitted", "--num-components", 4)
    config = world.make_config(tmp_path / "run", dataset={"shards": shards, "feature_cache": "fitted"})
    train(config)
    call("evaluate", run, "--max-pairs", 8, "--num-components", 2)
    call("render", run, "--num-images", 2, "--num-components", 2, "--video", "none")
    assert (tmp_path / "run" / "report.html").stat().st_size > 1000
    assert "54 images" in " ".join(call("info", shards).split())
