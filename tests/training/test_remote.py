"""Training on shards behind a URL, and commands that use its runs and these shards."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from featgan.cli.main import cli
from featgan.data.remote.access import open_node_cache
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from featgan.inference.model import EditingModel, load_model, open_cache, open_shards
from featgan.run.paths import load_run_config
from featgan.system.yaml_files import read_yaml_mapping
from featgan.training.train import train
from tests.conftest import World, read_checkpoint_tensors
from tests.helpers.servers import FaultyServer, serve_folder


@pytest.fixture
def server(world: World, tmp_path: Path) -> Iterator[FaultyServer]:
    shutil.copytree(world.shards.path, tmp_path / "server")
    with serve_folder(tmp_path / "server") as server:
        yield server
    open_node_cache.cache_clear()


def assert_equal_weights(first: Path, second: Path, step: int) -> None:
    for name in ("generator_ema", "discriminator"):
        tensors, others = (read_checkpoint_tensors(run, step, name) for run in (first, second))
        assert all((tensors[key] == others[key]).all() for key in tensors | others)


def open_run(run: Path) -> tuple[EditingModel, ShardSet]:
    """Open the model and the data of a run, as evaluate, render and explore do."""
    model = load_model(run)
    shards = open_shards(model)
    assert open_cache(model, shards).features("validation", [0]).shape == (1, 6)
    return model, shards


def test_training_over_http_equals_local_training(world: World, server: FaultyServer, tmp_path: Path) -> None:
    training = {"num_workers": 1, "steps": 8, "checkpoint_every": 4}
    local = world.make_config(tmp_path / "local", dataset={"shuffle_window": 2}, training=training)
    train(local)
    dataset = {"shards": f"{server.url}/manifest.json", "cache_dir": str(tmp_path / "cache"), "cache_gb": 0.01}
    for steps in (4, 8):  # the second training resumes
        remote = world.make_config(
            tmp_path / "remote", dataset=dataset | {"shuffle_window": 2}, training=training | {"steps": steps}
        )
        train(remote)
    assert_equal_weights(local.run_dir, remote.run_dir, 8)
    assert len(set(server.requests)) == len([path for path in server.requests if "manifest" not in path]) + 2
    assert read_yaml_mapping(remote.run_dir / "config.yaml")["dataset"]["shards"] == server.url
    model, shards = open_run(remote.run_dir)
    assert model.metadata.dataset["shards"] == str(shards.location) == server.url
    assert shards.path.is_relative_to(tmp_path / "cache")


def test_run_is_opened_on_a_machine_without_its_cache_folder(
    world: World,
    server: FaultyServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "node"))
    dataset = {"shards": server.url, "cache_dir": str(tmp_path / "cache"), "cache_gb": 0.01}
    config = world.make_config(tmp_path / "run", dataset=dataset, training={"steps": 1})
    train(config)
    open_node_cache.cache_clear()
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        _, shards = open_run(config.run_dir)
    assert shards.path.is_relative_to(tmp_path / "node")
    assert "set dataset.cache_dir" in caplog.text and f"using {tmp_path / 'node'}" in caplog.text
    with pytest.raises(UserError, match="cache"):
        train(world.make_config(tmp_path / "other", dataset=dataset))
    assert load_run_config(config.run_dir).dataset.cache_dir == tmp_path / "cache"


def test_staged_training_equals_training_in_place(world: World, tmp_path: Path) -> None:
    local, staged = (
        world.make_config(
            tmp_path / name, dataset={"stage": name == "staged", "cache_dir": str(tmp_path / "cache"), "cache_gb": 0.01}
        )
        for name in ("local", "staged")
    )
    train(local)
    assert not (tmp_path / "cache").exists()
    train(staged)
    open_node_cache.cache_clear()
    assert_equal_weights(local.run_dir, staged.run_dir, 4)
    assert any((tmp_path / "cache" / "objects").iterdir())


def test_cache_that_is_too_small_is_one_line(world: World, server: FaultyServer, tmp_path: Path) -> None:
    train_shards = world.shards.manifest.splits["train"].shards
    arrays = world.cache.manifest.files
    sizes = sorted(shard.bytes + arrays[f"{shard.stem}.features.npy"].bytes for shard in train_shards)
    dataset = {"shards": server.url, "cache_dir": str(tmp_path / "cache")}

    def start(num_bytes: int, window: int, name: str = "run") -> None:
        options = {"cache_gb": num_bytes / 1e9, "shuffle_window": window}
        train(world.make_config(tmp_path / name, dataset=dataset | options, training={"steps": 1}))

    with pytest.raises(
        UserError, match=r"the training data have .* GB; set dataset\.shuffle_window to at most 1, or "
    ) as error:
        start(sum(sizes[-2:]), 0)
    assert 1 <= float(str(error.value).rpartition("set dataset.cache_gb to at least ")[2]) * 1e9 / sum(sizes) < 1.01
    with pytest.raises(UserError, match=r"two windows of shards have .* GB; use smaller shards, or free space and set"):
        start(sum(sizes[-2:]) - 1, 1)
    assert not (tmp_path / "run").exists() and not [path for path in server.requests if path.endswith(".tar")]
    start(sum(sizes[-2:]), 1, "fits")
    start(sum(sizes), 0, "fits as a whole")


def test_commands_accept_a_url(server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "node"))
    result = CliRunner().invoke(cli, ["info", server.url], catch_exceptions=False)
    assert result.exit_code == 0 and "each shard is checked when it is downloaded" in result.output
    assert f"{server.url}: shards" in result.output.replace("\n", "")
    for url in (f"{server.url}/none", "ftp://host/shards"):
        with pytest.raises(UserError, match=url):
            CliRunner().invoke(cli, ["info", url], catch_exceptions=False)
