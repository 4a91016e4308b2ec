"""Files that declare more than they contain are rejected at low cost: shards, caches, runs and configurations."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from featgan.config.loading import parse_config
from featgan.data.feature_cache.cache import FeatureCache
from featgan.data.readers.affectnet_annotations import read_plus_labels
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from featgan.inference.model import load_model
from featgan.networks.parameter_count import check_parameter_count
from featgan.run.checkpoint import save_checkpoint
from featgan.run.paths import step_folder
from featgan.system.memory import choose_batch_size
from featgan.training.checkpointing import read_saved_state
from featgan.training.dry_run import describe_plan
from featgan.training.train import train
from tests.conftest import World
from tests.helpers.limits import measure_call
from tests.helpers.mounts import featgan_command

OPEN_SHARDS = "from featgan.data.shards.shard_set import ShardSet"


@pytest.fixture
def shards(world: World, tmp_path: Path) -> Path:
    """Return a copy of the shards and feature caches."""
    return shutil.copytree(world.shards.path, tmp_path / "shards")


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def set_counts(manifest: dict[str, Any], count: int) -> None:
    """Set the number of images of the first training shard, and of the split."""
    split = manifest["splits"]["train"]
    split["count"] += count - split["shards"][0]["count"]
    split["shards"][0]["count"] = count


@pytest.mark.parametrize("count", [1_000_000_000, 2**62, 10**30])
def test_count_beyond_the_size_of_the_shards_is_rejected_at_low_cost(shards: Path, count: int) -> None:
    edit_json(shards / "manifest.json", lambda manifest: set_counts(manifest, count))
    measured = measure_call(OPEN_SHARDS, f"ShardSet.open({str(shards)!r}).get_split('train')")
    assert measured.message and "manifest.json: corrupted" in measured.message and measured.is_cheap(), measured


def replace_index(shards: Path, **changes: np.ndarray) -> None:
    """Change arrays of the index of the training split, and its hash in the manifest."""
    path = shards / "train.index.npz"
    with np.load(path) as arrays:
        np.savez(path, **{**dict(arrays), **changes})
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    edit_json(shards / "manifest.json", lambda manifest: manifest["splits"]["train"].update(index_sha256=sha256))


@pytest.mark.parametrize("column", ["offset", "size", "both", "expression", "attributes"])
def test_index_beyond_the_shards_or_classes_is_rejected(shards: Path, column: str) -> None:
    with np.load(shards / "train.index.npz") as arrays:
        values = dict(arrays)
    values["offset"][0] = 2**63 - 1 if column in ("offset", "both") else values["offset"][0]
    values["size"][0] = 2**63 - 1 if column in ("size", "both") else values["size"][0]
    values["expression"][0] = 8 if column == "expression" else values["expression"][0]
    if column == "attributes":
        values["attributes"] = np.full((len(values["keys"]), 1_000), 5, np.int8)
    replace_index(shards, **values)
    with pytest.raises(UserError, match="the index does not match the shards"):
        ShardSet.open(shards).get_split("train")


def test_index_whose_header_declares_more_than_its_member_is_rejected_at_low_cost(shards: Path) -> None:
    path = shards / "train.index.npz"
    content = path.read_bytes()
    num_images = len(np.load(path)["offset"])
    shape = f"'shape': ({num_images},), }}".encode()
    start = content.index(shape, content.index(b"offset.npy"))
    end = content.index(b"\n", start)
    header = (content[start:end].replace(shape, b"'shape': (900000000,), }")).rstrip().ljust(end - start)
    path.write_bytes(content[:start] + header + content[end:])
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    edit_json(shards / "manifest.json", lambda manifest: manifest["splits"]["train"].update(index_sha256=sha256))
    measured = measure_call(OPEN_SHARDS, f"ShardSet.open({str(shards)!r}).get_split('train')")
    assert measured.message and "corrupted index" in measured.message and measured.is_cheap(), measured


@pytest.mark.parametrize("value", [5, 7, 16_000, 10**12])
def test_wrong_feature_dim_names_a_remedy_that_works(shards: Path, world: World, value: int) -> None:
    folder = shards / "features" / "linear"
    for name in ("manifest.json", "partial.json"):
        if (folder / name).is_file():
            edit_json(folder / name, lambda manifest: manifest.update(feature_dim=value))
    with pytest.raises(UserError, match=f"remove {folder} and run `featgan extract` again"):
        FeatureCache.open(ShardSet.open(shards), "linear")


@pytest.mark.parametrize("change", [{"mean": torch.zeros(3)}, {"extra": torch.zeros(1)}, {"live": torch.zeros(6)}])
def test_feature_space_that_does_not_fit_is_rejected(shards: Path, change: dict[str, torch.Tensor]) -> None:
    folder = shards / "features" / "linear"
    save_file({**load_file(folder / "space.safetensors"), **change}, folder / "space.safetensors")
    size = (folder / "space.safetensors").stat().st_size
    edit_json(folder / "manifest.json", lambda manifest: manifest["files"]["space.safetensors"].update({"bytes": size}))
    cache = FeatureCache.open(ShardSet.open(shards), "linear")
    with pytest.raises(UserError, match=f"space.safetensors: .*remove {folder}"):
        assert cache.space


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run for two steps."""
    config = world.make_config(tmp_path_factory.mktemp("limits") / "run", training={"steps": 2})
    train(config)
    return config.run_dir


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": 2**20}, {"image_size": 1024}, {"condition_dim": 10**9}, {"condition_dim": 60_000},
        {"generator": {"dim": 10**6}}, {"generator": {"dim": 1024}}, {"generator": {"num_blocks": 10**9}},
        {"generator": {"num_blocks": 64, "dim": 512}}, {"encoding": "other"}, {"image_size": 6},
    ],
)  # fmt: skip
def test_model_beyond_the_limits_is_rejected_at_low_cost(run: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    source = step_folder(run, 2)
    documents = {name: json.loads((source / f"{name}.json").read_text()) for name in ("model", "state")}
    generator = documents["model"]["generator"] | changes.get("generator", {})
    documents["model"] |= changes | {"generator": generator}
    tensors = {name: load_file(source / f"{name}.safetensors") for name in ("generator_ema", "space")}
    save_checkpoint(tmp_path, 2, tensors, documents, 1)
    setup = "from pathlib import Path\nfrom featgan.inference.model import load_model"
    measured = measure_call(setup, f"load_model(Path({str(tmp_path)!r}))")
    if changes == {"image_size": 1024}:
        assert measured.message is None, "the weights do not depend on the image size"
    else:
        assert measured.message and str(tmp_path) in measured.message, measured
    assert measured.is_cheap(), measured


def test_unchanged_model_is_loaded(run: Path) -> None:
    assert load_model(run).space is not None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("generator.dim", 2000), ("generator.num_blocks", 1_000_000), ("discriminator.dim", 10**9),
        ("discriminator.max_dim", 10**9), ("discriminator.num_layers", 60), ("training.steps", 10**8),
        ("training.batch_size", 10**9), ("training.log_every", 10**20), ("training.checkpoint_every", 10**99),
        ("training.ema_half_life_images", 10**30), ("distributed.hang_timeout", 1e300),
        ("evaluation.max_pending", 10**30),
    ],
)  # fmt: skip
def test_configuration_beyond_the_limits_is_rejected(key: str, value: object) -> None:
    section, name = key.split(".")
    with pytest.raises(UserError, match=f"test: {key}: "):
        parse_config({section: {name: value}}, "test")


def test_networks_with_too_many_parameters_are_rejected_before_allocation(world: World, tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "dataset": {"shards": str(world.shards.path), "feature_cache": "linear"},
        "generator": {"dim": 1024, "num_blocks": 64},
        "discriminator": {"dim": 4, "num_layers": 3},
    }
    (tmp_path / "config.yaml").write_text(json.dumps({"run_dir": str(tmp_path / "run"), **sections}))
    for command in ("describe_plan(config)", "train(config)"):
        setup = (
            "from featgan.config.loading import load_config\nfrom featgan.training.dry_run import describe_plan\n"
            f"from featgan.training.train import train\nconfig = load_config({str(tmp_path / 'config.yaml')!r})"
        )
        measured = measure_call(setup, command)
        assert (
            measured.message
            and "the generator has 19,664,568,320" in measured.message
            and "at most" in measured.message
        ), measured
        assert measured.is_cheap(), measured


def test_dry_run_allocates_no_networks(world: World, tmp_path: Path) -> None:
    config = world.make_config(tmp_path / "run", generator={"dim": 64, "num_blocks": 6})
    expected = "generator     8,4"
    assert expected in describe_plan(config)


def test_parameter_count_does_not_change_random_numbers() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    check_parameter_count(lambda: torch.nn.Linear(30, 40), "linear")
    assert torch.equal(torch.rand(4), expected)


def test_batch_sizes_of_usual_images_are_not_reduced() -> None:
    assert [choose_batch_size(size, 64) for size in (16, 112, 224, 299, 512, 1024)] == [64, 64, 64, 64, 64, 16]
    assert choose_batch_size(10**6, 64) == 1 and choose_batch_size(0, 8) == 8


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"step": "2", "fingerprints": {}}', '{"step": 2, "fingerprints": 3}', "[" * 100_000]
)
def test_damaged_state_of_a_checkpoint_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(UserError, match="state.json: .*use another step") as error:
        read_saved_state(tmp_path / "state.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ['{"Human-Label": ' + "1" * 5000 + "}", "[" * 100_000, '"\\ud800"'])
def test_annotation_beyond_the_limits_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "0.json").write_text(content)
    with pytest.raises(UserError, match="0.json: .*copy it again"):
        read_plus_labels(tmp_path / "0.json")


@pytest.mark.parametrize("option", ["image_size=4096", "resize_size=1000000000", "image_size=" + "9" * 5000])
def test_input_size_of_a_spec_beyond_the_limit_is_one_line(world: World, tmp_path: Path, option: str) -> None:
    path = tmp_path / "network.pt"
    torch.jit.save(torch.jit.script(torch.nn.Flatten()), path)  # type: ignore[no-untyped-call]
    arguments = ("extract", "--shards", world.shards.path, "--blackbox", f"{path}?{option}", "--cache-name", "large")
    completed = subprocess.run(featgan_command(*arguments), capture_output=True, text=True, timeout=300, check=False)
    # A slow machine prints the progress of hashing before the error.
    lines = [line for line in completed.stderr.splitlines() if "━" not in line]
    assert completed.returncode == 2 and len(lines) == 1, completed.stderr
    assert option.partition("=")[0] in lines[0] and len(lines[0]) < 1000
    assert not (world.shards.path / "features" / "large").exists()
