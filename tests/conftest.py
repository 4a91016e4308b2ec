"""Shared fixtures: a tiny packed data set of synthetic faces, with the cached features of a fake classifier."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from featgan.cli.log_handler import install_log_handler
from featgan.config.loading import parse_config
from featgan.config.schema import Config
from featgan.data.feature_cache.cache import FeatureCache, FeatureWriter
from featgan.data.packing.pack import pack_shards
from featgan.data.shards.shard_set import ShardSet
from featgan.data.synthetic.dataset import synthesize_faces
from featgan.system.images import to_float

# The networks of the tests are too small to profit from a second thread.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# What featgan remembers for its user must not come from, or change, the state of the user who runs the tests.
USER_FOLDER = tempfile.TemporaryDirectory(prefix="featgan-tests-")
os.environ["XDG_STATE_HOME"] = f"{USER_FOLDER.name}/state"
os.environ["XDG_CACHE_HOME"] = f"{USER_FOLDER.name}/cache"


class FakeLinearClassifier:
    """A fixed linear map of the image; its features change when the image is flipped horizontally."""

    spec = "linear"
    layer = "hidden"
    sha256 = "1" * 64
    device = torch.device("cpu")
    feature_dim = 6
    output_dim = 8
    task = "expression"
    class_names: tuple[str, ...] = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt")

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.weight = torch.randn(6, 3 * 8 * 8, generator=generator)
        self.head = (torch.randn(8, 6, generator=generator), torch.zeros(8))

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        small = torch.nn.functional.interpolate(images, size=(8, 8), mode="area")
        features = small.flatten(1) @ self.weight.T
        return features, features @ self.head[0].T + self.head[1]


@dataclass(frozen=True)
class World:
    """Paths and opened data of the tiny data set."""

    source: Path
    shards: ShardSet
    cache: FeatureCache
    classifier: FakeLinearClassifier

    def make_config(self, run_dir: Path, **sections: Mapping[str, Any]) -> Config:
        """Return the configuration of a run that trains for seconds on these data; `sections` override it."""
        sections_by_name: dict[str, Mapping[str, Any]] = {
            "dataset": {"shards": str(self.shards.path), "feature_cache": "linear"},
            "generator": {"dim": 4, "num_blocks": 1},
            "discriminator": {"dim": 4, "num_layers": 3},
            "training": {
                "precision": "fp32",
                "steps": 4,
                "batch_size": 4,
                "n_critic": 2,
                "log_every": 1,
                "checkpoint_every": 2,
            },
        }
        for name, values in sections.items():
            sections_by_name[name] = {**sections_by_name.get(name, {}), **values}
        return parse_config({"run_dir": str(run_dir), **sections_by_name}, "test")


def write_features(
    shards: ShardSet, classifier: FakeLinearClassifier, name: str, num_components: int | None = None
) -> FeatureCache:
    """Cache the fake classifier's features of every image and of its horizontal flip."""
    writer = FeatureWriter(shards, name, classifier, num_components)
    for pending in writer.list_pending():
        images = to_float(shards.get_split(pending.split).decode(list(pending.rows)))
        pairs = [classifier(images), classifier(images.flip(3))]
        writer.write_shard(pending, *(torch.stack(pair, 1) for pair in zip(*pairs, strict=True)))
    return writer.commit()


@pytest.fixture(autouse=True)
def log_messages() -> None:
    """Print log messages to standard error, as the command line does."""
    install_log_handler()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Pack 60 synthetic faces of 16 px; cache their features as `linear`, and 3 components as `linear-3`."""
    folder = tmp_path_factory.mktemp("world")
    synthesize_faces(folder / "faces", 60, 0, 32, workers=1)
    pack_shards("affectnet", folder / "faces", folder / "shards", image_size=16, images_per_shard=25, workers=1)
    shards, classifier = ShardSet.open(folder / "shards"), FakeLinearClassifier()
    cache = write_features(shards, classifier, "linear")
    write_features(shards, classifier, "linear-3", 3)
    return World(folder / "faces", shards, cache, classifier)


ATTRIBUTES = ("Black_Hair", "Male", "Smiling")
SELECTED_ATTRIBUTES = ("Smiling", "Black_Hair")


@pytest.fixture(scope="session")
def celeba(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pack the same faces from a CelebA layout, with three attributes."""
    source = tmp_path_factory.mktemp("celeba")
    shutil.copytree(world.source / "train_set" / "images", source / "images")
    names = sorted(path.name for path in (source / "images").iterdir())
    values = np.random.default_rng(0).choice([-1, 1], (len(names), len(ATTRIBUTES)))
    rows = [f"{name} {' '.join(map(str, row))}" for name, row in zip(names, values, strict=True)]
    attribute_list = "\n".join([str(len(names)), " ".join(ATTRIBUTES), *rows])
    (source / "list_attr_celeba.txt").write_text(attribute_list + "\n")
    pack_shards("celeba", source, source / "shards", image_size=16, crop=32, workers=1)
    return source / "shards"


def read_checkpoint_tensors(run: Path, step: int, name: str) -> dict[str, np.ndarray]:
    """Return the tensors of a checkpoint file as arrays, for exact comparison."""
    from featgan.run.checkpoint import read_tensors
    from featgan.run.paths import step_folder

    tensors = read_tensors(step_folder(run, step) / f"{name}.safetensors")
    return {key: value.numpy() for key, value in tensors.items()}
