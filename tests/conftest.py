"""Shared by the tests: one tiny world of drawn faces, packed, with a stand-in box's features cached."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from featgan.config.loading import validate
from featgan.config.schema import Config
from featgan.data.feature_cache.cache import FeatureCache, FeatureWriter
from featgan.data.packing.pack import pack
from featgan.data.shards.shard_set import ShardSet
from featgan.data.synthetic.dataset import synthesize
from featgan.system.images import to_float

# The networks of the tests are too small for a second thread to pay.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


class StandInBox:
    """A fixed linear map of the image, unlike for an image and its mirror image."""

    spec = "stand-in"
    layer = "hidden"
    sha256 = "1" * 64
    device = torch.device("cpu")
    feature_dim = 6
    output_dim = 8
    output_kind = "expression"
    class_names = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt")

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
    """Paths and opened data of the tiny world."""

    source: Path
    shards: ShardSet
    cache: FeatureCache
    box: StandInBox

    def config(self, run: Path, **sections: dict[str, object]) -> Config:
        """A run of seconds on this world; `sections` override."""
        tree: dict[str, dict[str, object]] = {
            "dataset": {"shards": str(self.shards.path), "features": "stand-in"},
            "generator": {"dim": 4, "num_blocks": 1},
            "discriminator": {"dim": 4, "num_layers": 3},
            "training": {
                "precision": "fp32",
                "steps": 4,
                "batch_size": 4,
                "critic_steps": 2,
                "report_every": 1,
                "save_every": 2,
            },
        }
        for name, values in sections.items():
            tree[name] = {**tree.get(name, {}), **values}
        return validate({"run": str(run), **tree}, "test")


def write_features(shards: ShardSet, box: StandInBox, name: str, components: int | None = None) -> FeatureCache:
    """Cache what the stand-in box says of every image and of its mirror image."""
    writer = FeatureWriter(shards, name, box, components)
    for pending in writer.pending():
        images = to_float(shards.split(pending.split).decode(list(pending.rows)))
        pairs = [box(images), box(images.flip(3))]
        writer.write(pending, *(torch.stack(parts, 1) for parts in zip(*pairs, strict=True)))
    return writer.commit()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """60 drawn faces of 16 px, packed; features cached as `stand-in`, and with 3 components as `stand-in-3`."""
    root = tmp_path_factory.mktemp("world")
    synthesize(root / "faces", 60, 0, 32, workers=1)
    pack("affectnet", root / "faces", root / "shards", image_size=16, images_per_shard=25, workers=1)
    shards, box = ShardSet.open(root / "shards"), StandInBox()
    cache = write_features(shards, box, "stand-in")
    write_features(shards, box, "stand-in-3", 3)
    return World(root / "faces", shards, cache, box)


ATTRIBUTES = ("Black_Hair", "Male", "Smiling")
CHOSEN = ("Smiling", "Black_Hair")


@pytest.fixture(scope="session")
def celeba(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world's faces once more, packed out of CelebA's layout with three attributes."""
    source = tmp_path_factory.mktemp("celeba")
    shutil.copytree(world.source / "train_set" / "images", source / "images")
    names = sorted(path.name for path in (source / "images").iterdir())
    values = np.random.default_rng(0).choice([-1, 1], (len(names), len(ATTRIBUTES)))
    rows = [f"{name} {' '.join(map(str, row))}" for name, row in zip(names, values, strict=True)]
    listed = "\n".join([str(len(names)), " ".join(ATTRIBUTES), *rows])
    (source / "list_attr_celeba.txt").write_text(listed + "\n")
    pack("celeba", source, source / "shards", image_size=16, crop=32, workers=1)
    return source / "shards"


def tensors_of(run: Path, step: int, name: str) -> dict[str, np.ndarray]:
    """A checkpoint's tensors as arrays, for exact comparison."""
    from featgan.run.checkpoint import read_tensors
    from featgan.run.paths import step_folder

    found = read_tensors(step_folder(run, step) / f"{name}.safetensors")
    return {key: value.numpy() for key, value in found.items()}
