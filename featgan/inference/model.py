"""The exported generator of a run: everything that is needed to edit an image."""

import os
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from featgan.config.schema import DatasetConfig
from featgan.data.conditions import build_condition_input, condition_input_dim
from featgan.data.feature_cache.cache import FeatureCache
from featgan.data.remote.access import DEFAULT_ACCESS, DataAccess
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from featgan.features.space import FeatureSpace
from featgan.networks.generator import Generator
from featgan.networks.parameter_count import describe_shapes
from featgan.run.checkpoint import CORRUPTED_REMEDY, find_checkpoint, read_space, read_tensors
from featgan.run.model_metadata import ModelMetadata, read_model_metadata
from featgan.run.paths import load_run_config
from featgan.system.device import limit_torch_threads
from featgan.system.memory import choose_batch_size, keep_freed_memory

BATCH_SIZE = 64


@dataclass(frozen=True)
class EditingModel:
    """A generator (EMA weights, no gradients) with its metadata and feature space, on one device."""

    metadata: ModelMetadata
    generator: Generator
    space: FeatureSpace | None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    access: DataAccess = DEFAULT_ACCESS
    """How the data of the run are read."""

    def encode(self, features: Tensor) -> Tensor:
        """Convert features of the black box [..., F] to the condition [..., C]."""
        assert self.space is not None
        return self.space.encode(features, self.metadata.encoding)

    def condition_input(self, target: Tensor, source: Tensor | None) -> Tensor:
        """Build the condition input of G from the embedded target and source, both [..., E] => [..., P]."""
        return build_condition_input(self.metadata.generator.condition_input, target, source)

    @torch.inference_mode()
    def edit_images(self, images: Tensor, condition: Tensor) -> Tensor:
        """Edit images [N, 3, S, S] in [-1, 1]; `condition` [N, P] is from `condition_input`; clamps to [-1, 1]."""
        batch_size = choose_batch_size(images.shape[-1], BATCH_SIZE)
        batches = [
            self.generator(batch.to(self.device), condition_batch.to(self.device)).clamp(-1, 1).cpu()
            for batch, condition_batch in zip(images.split(batch_size), condition.split(batch_size), strict=True)
        ]
        return torch.cat(batches)


def open_dataset(dataset: DatasetConfig) -> ShardSet:
    """Open the shards of a data set of a run that was trained, maybe on another machine."""
    return ShardSet.open(dataset.shards, replace(DataAccess.from_config(dataset), may_use_other_folder=True))


def read_access(run_dir: Path) -> DataAccess:
    """Return how the run reads its data; the default if its configuration is missing or of another user.

    Someone else could choose any folder of this user as the cache.
    """
    try:
        if (run_dir / "config.yaml").stat().st_uid not in (os.geteuid(), 0):
            return DEFAULT_ACCESS
        return replace(DataAccess.from_config(load_run_config(run_dir).dataset), may_use_other_folder=True)
    except (UserError, OSError):
        return DEFAULT_ACCESS


def open_shards(model: EditingModel) -> ShardSet:
    """Open the shards that the model was trained on; raises UserError if they differ or are corrupted."""
    shards = ShardSet.open(str(model.metadata.dataset["shards"]), model.access)
    fingerprint = model.metadata.dataset.get("fingerprint")
    if shards.image_size != model.metadata.image_size or (fingerprint and fingerprint != shards.fingerprint):
        raise UserError(
            f"{shards.location}: not the shards that the run was trained on ({shards.image_size} px now, "
            f"{model.metadata.image_size} px in training); pack the original shards again or train again"
        )
    shards.verify()
    return shards


def open_cache(model: EditingModel, shards: ShardSet) -> FeatureCache:
    """Open the feature cache that the model was trained on; raises UserError if it differs or is corrupted."""
    cache = FeatureCache.open(shards, str(model.metadata.dataset["features"]))
    identity = model.metadata.blackbox or {}
    if any(cache.blackbox[key] != identity.get(key) for key in ("sha256", "layer")):
        raise UserError(
            f"{cache.location}: not the classifier or layer that the run was trained on; "
            "extract the original features again or train again"
        )
    cache.verify()
    return cache


def load_model(run_dir: Path, step: int | None = None, device: torch.device | str = "cpu") -> EditingModel:
    """Load the EMA generator of a checkpoint, by default the newest.

    Raises UserError if the checkpoint is missing or corrupted.
    """
    keep_freed_memory()
    limit_torch_threads()
    folder = find_checkpoint(run_dir, step)
    metadata = read_model_metadata(folder / "model.json")
    input_dim = condition_input_dim(metadata.generator.condition_input, metadata.condition_dim)
    build_generator = partial(Generator, metadata.image_size, input_dim, **metadata.generator.architecture)
    tensors = read_tensors(folder / "generator_ema.safetensors")
    try:
        shapes = describe_shapes(build_generator)
    except ValueError as error:
        raise UserError(f"{folder / 'model.json'}: {error}; {CORRUPTED_REMEDY}") from None
    # The shapes are compared before the network of model.json is allocated.
    if shapes != {name: tensor.shape for name, tensor in tensors.items()}:
        raise UserError(
            f"{folder}: generator_ema.safetensors does not fit the architecture in model.json; use another step"
        )
    generator = build_generator()
    generator.load_state_dict(tensors)
    generator.eval().requires_grad_(False).to(device)
    return EditingModel(metadata, generator, load_space(folder, metadata), torch.device(device), read_access(run_dir))


def load_space(folder: Path, metadata: ModelMetadata) -> FeatureSpace | None:
    """Load the feature space of a checkpoint, if it has one.

    Raises UserError if it is corrupted or does not fit model.json.
    """
    path = folder / "space.safetensors"
    if not path.exists():
        return None
    space = read_space(path)
    num_values = space.condition_dim(metadata.encoding)
    if num_values != metadata.condition_dim:
        raise UserError(f"{path}: {num_values} values, but model.json has {metadata.condition_dim}; use another step")
    return space
