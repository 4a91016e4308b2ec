"""Collects what a checkpoint contains; `featgan.run.checkpoint` writes the files.

Restoring a checkpoint checks that it belongs to the data of the run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featgan import __version__
from featgan.errors import UserError
from featgan.run.checkpoint import CORRUPTED_REMEDY, read_json, read_space, read_tensors, save_checkpoint
from featgan.run.evaluation_schedule import protected_steps, warn_dropped_checkpoints
from featgan.run.model_metadata import ModelMetadata
from featgan.system.limits import MAX_COUNT
from featgan.training.state import TrainState


def save_train_state(state: TrainState, run_dir: Path, step: int) -> None:
    """Write the checkpoint of a step. All processes must call this; only the main process writes.

    Raises UserError if a weight is NaN or infinite.
    """
    optimizer_states = {
        "generator": state.generator.optimizer_state(),
        "discriminator": state.discriminator.optimizer_state(),
    }
    if not state.context.is_main:
        return
    if not all(
        torch.isfinite(parameter).all()
        for network in (state.generator, state.discriminator)
        for parameter in network.module.parameters()
    ):
        raise UserError(
            f"step {step}: the weights contain NaN or Inf; lower the learning rates (the last checkpoint was kept)"
        )
    tensors = {
        "generator_ema": state.ema.module.state_dict(),
        "discriminator": state.discriminator.module.state_dict(),
    }
    tensors |= {f"optimizer-{name}": optimizer_state for name, optimizer_state in optimizer_states.items()}
    if state.ema.half_life:
        tensors["generator"] = state.generator.module.state_dict()
    feature_space = state.conditions[0].space
    if feature_space is not None:
        tensors["space"] = feature_space.tensors()
    run_state = {"step": step, "featgan": __version__, "world_size": state.context.world_size}
    run_state["fingerprints"] = data_fingerprints(state)
    documents = {"model": build_model_metadata(state, step).model_dump(mode="json"), "state": run_state}
    protected = protected_steps(run_dir, state.config.evaluation)
    warn_dropped_checkpoints(run_dir, state.config.evaluation, protected)
    save_checkpoint(run_dir, step, tensors, documents, state.config.training.max_checkpoints, protected)


def data_fingerprints(state: TrainState) -> dict[str, str]:
    """Return what identifies the training data: the shards, and the classifier and layer of the features."""
    fingerprints = {"set of shards": " ".join(shard_set.fingerprint for shard_set in state.shard_sets)}
    blackbox = state.conditions[0].blackbox
    return fingerprints | ({"black box": blackbox["sha256"], "layer": blackbox["layer"]} if blackbox else {})


def build_model_metadata(state: TrainState, step: int) -> ModelMetadata:
    """Return the metadata needed to use the exported generator."""
    config, condition = state.config, state.conditions[0]
    uses_features = condition.config.kind == "features"
    return ModelMetadata(
        step=step,
        image_size=state.image_size,
        condition_dim=state.condition_layout.embedded_dim,
        generator=config.generator,
        condition_kind=condition.config.kind,
        encoding=condition.config.encoding,
        names=tuple(name for dataset_condition in state.conditions for name in dataset_condition.names),
        class_names=tuple(state.shard_sets[0].classes),
        attribute_names=condition.config.attributes,
        blackbox=condition.blackbox or None,
        dataset={
            "shards": str(config.dataset.shards.absolute()),
            "features": config.dataset.feature_cache if uses_features else None,
            "fingerprint": state.shard_sets[0].fingerprint,
        },
    )


def restore_train_state(state: TrainState, folder: Path | None, reset_optimizer: bool = False) -> int:
    """Load a checkpoint folder into the train state and return its step; return 0 if `folder` is None.

    `reset_optimizer` loads the weights only. Raises UserError if the checkpoint was trained on other data, or if its
    tensors do not fit the networks.
    """
    if folder is None:
        return 0
    saved_step, saved_fingerprints = read_saved_state(folder / "state.json")
    check_provenance(state, folder, saved_fingerprints)
    generator_file = "generator" if state.ema.half_life else "generator_ema"
    load_weights(state.generator.module, folder / f"{generator_file}.safetensors")
    load_weights(state.discriminator.module, folder / "discriminator.safetensors")
    if state.ema.half_life:
        load_weights(state.ema.module, folder / "generator_ema.safetensors")
    for name, network in (("generator", state.generator), ("discriminator", state.discriminator)):
        path = folder / f"optimizer-{name}.safetensors"
        tensors = None if reset_optimizer else read_tensors(path)
        try:
            network.load_optimizer_state(tensors)
        except ValueError as error:
            raise UserError(f"{path}: does not fit the optimizer ({error}); {CORRUPTED_REMEDY}") from None
    return saved_step


def read_saved_state(path: Path) -> tuple[int, dict[str, str]]:
    """Return the step and the fingerprints of the data in state.json. Raises UserError if it is damaged."""
    content: Any = read_json(path)
    saved_step = content.get("step") if isinstance(content, dict) else None
    fingerprints = content.get("fingerprints") if isinstance(content, dict) else None
    if type(saved_step) is not int or not 0 <= saved_step <= MAX_COUNT or not isinstance(fingerprints, dict):
        raise UserError(f"{path}: damaged (no step or fingerprints); {CORRUPTED_REMEDY}")
    return saved_step, fingerprints


def check_provenance(state: TrainState, folder: Path, saved_fingerprints: Mapping[str, str]) -> None:
    """Raise UserError if the data of the run are not those that the checkpoint was trained on."""
    shards_folder = state.config.dataset.shards
    for name, value in data_fingerprints(state).items():
        if saved_fingerprints.get(name) != value:
            raise UserError(
                f"{folder}: the {name} has changed since this checkpoint was saved; "
                f"restore the previous data in {shards_folder}, or choose another run_dir=..."
            )
    condition = state.conditions[0]
    encoding = condition.config.encoding
    if condition.space is not None:
        saved_space = read_space(folder / "space.safetensors")
        if not saved_space.is_equivalent(condition.space, encoding):
            raise UserError(
                f"{folder}: was trained on {saved_space.condition_dim(encoding)} {encoding} features, but those of "
                f"{shards_folder} have changed (now {condition.space.condition_dim(encoding)}); extract them again "
                "with the previous --num-components, or choose another run_dir=..."
            )


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a weight file into a network. Raises UserError if a tensor is missing or has another shape."""
    tensors, expected = read_tensors(path), network.state_dict()
    for name in expected | tensors:
        saved_shape, expected_shape = (
            list(group[name].shape) if name in group else "missing" for group in (tensors, expected)
        )
        if saved_shape != expected_shape:
            mismatch = f"{name} is {saved_shape} in the file but {expected_shape} in the network"
            raise UserError(
                f"{path}: does not fit the networks of this configuration: {mismatch}; train with the same networks"
            )
    network.load_state_dict(tensors)
