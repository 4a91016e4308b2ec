"""Train a classifier with a 64-dimensional last hidden layer on the labels of a shard set (`featgan blackbox fit`)."""

import logging
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from featgan.blackbox.fitting.dataset import ClassifierDataset, load_classifier_dataset, target_output_names
from featgan.blackbox.fitting.model_folder import (
    METADATA_FILE,
    WEIGHTS_FILE,
    WRITE_ERROR_REMEDY,
    has_corrupt_weights,
    read_classifier_metadata,
    write_classifier,
)
from featgan.blackbox.fitting.network import Architecture, FittedNetwork, build_network, drop_head_weights
from featgan.blackbox.fitting.scores import compute_scores
from featgan.blackbox.fitting.trainer import ClassifierTrainer
from featgan.blackbox.preprocessing import IMAGENET, Preprocessing
from featgan.blackbox.torchvision_models import torchvision_preprocessing
from featgan.blackbox.weights import choose_device, load_state_dict, read_checkpoint, select_state_dict
from featgan.config.choices import FittedTask
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from featgan.system.device import limit_torch_threads
from featgan.system.files import check_writable, sha256_of
from featgan.system.locations import Location

logger = logging.getLogger(__name__)


class FitSettings(BaseModel):
    """All settings that determine the weights; equal settings give an equal classifier."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: FittedTask
    network: str
    width: Annotated[float, Field(ge=0.125, le=8)]
    weights: str | None
    """sha256 of the file with the initial weights of the backbone."""
    epochs: Annotated[int, Field(ge=1, le=10_000)]
    batch_size: Annotated[int, Field(ge=2, le=65_536)]
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    seed: Annotated[int, Field(ge=0, lt=1 << 63)]
    image_size: Annotated[int, Field(ge=16, le=1024)]
    shards: str
    """Fingerprint of the shards."""


def fit_blackbox(
    shards: Path | str | Location,
    task: str,
    out: Path | str,
    network: str = "vgg",
    weights: Path | str | None = None,
    epochs: int = 10,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    seed: int = 0,
    image_size: int | None = None,
    width: float = 1.0,
    device: str | torch.device | None = None,
) -> dict[str, Any]:
    """Train a classifier on the training split, write it to `out`, and return its scores on the validation split.

    `task` is expression, valence_arousal, attributes or factors. `network` is `vgg` or `torchvision:NAME`, and
    `weights` is a file with initial weights for its backbone. `image_size` defaults to that of the shards, and `width`
    multiplies the number of channels of `vgg`. If `out` contains a classifier with the same settings, it is kept,
    unless its weights are corrupted.

    Raises UserError if a setting is out of range, if the shards lack the labels, or if `out` has other content.
    """
    shard_set = ShardSet.open(shards)
    shard_set.verify()
    names = target_output_names(shard_set, task)
    initial_weights = Path(weights) if weights else None
    settings = check_settings(
        task=task,
        network=network,
        width=width,
        weights=hash_weights_file(initial_weights),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        image_size=image_size or shard_set.image_size,
        shards=shard_set.fingerprint,
    )
    existing_scores = find_existing_scores(Path(out), settings)
    if existing_scores is not None:
        logger.info(f"{out}: already trained with these settings")
        return existing_scores
    check_writable(Path(out), WRITE_ERROR_REMEDY)
    return fit_and_write(shard_set, names, settings, initial_weights, Path(out), choose_device(device))


def hash_weights_file(path: Path | None) -> str | None:
    """Return the sha256 of the file, or None; raises UserError if the file is missing."""
    if path is None:
        return None
    if not path.is_file():
        raise UserError(f"--weights {path}: no such file; check the path")
    return sha256_of(path)


def check_settings(**values: Any) -> FitSettings:
    """Validate the settings; raises UserError that names the first setting that is out of range."""
    try:
        return FitSettings(**values)
    except ValidationError as error:
        first_error = error.errors(include_url=False)[0]
        name = str(first_error["loc"][0])
        message = first_error["msg"]
        raise UserError(f"{name}={values[name]}: {message[0].lower()}{message[1:]}; choose another value") from error


def find_existing_scores(out: Path, settings: FitSettings) -> dict[str, Any] | None:
    """Return the scores of the classifier in `out`; None if `out` is empty or the weights are corrupted.

    Raises UserError if `out` contains a classifier with other settings, or anything else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / METADATA_FILE).is_file():
        raise UserError(f"{out}: already exists and is not a classifier of featgan; choose another --out")
    metadata = read_classifier_metadata(out)
    for name, value in settings.model_dump().items():
        existing_value = metadata.settings.get(name)
        if existing_value != value:
            difference = "on other shards" if name == "shards" else f"with {name} {existing_value}, not {value}"
            raise UserError(f"{out}: was trained {difference}; remove it or choose another --out")
    if has_corrupt_weights(out, metadata):
        logger.warning(f"{out / WEIGHTS_FILE}: missing or corrupted; training the classifier again")
        return None
    return metadata.scores


def fit_and_write(
    shards: ShardSet,
    names: tuple[str, ...],
    settings: FitSettings,
    initial_weights: Path | None,
    out: Path,
    device: torch.device,
) -> dict[str, Any]:
    """Train the classifier, score it on the validation split (or the training split if there is none), and write it."""
    limit_torch_threads()
    architecture = Architecture(network=settings.network, width=settings.width, output_dim=len(names))
    network = init_network(architecture, settings.seed, initial_weights)
    # External weights expect the preprocessing that they were trained with.
    base = external_preprocessing(settings.network) if initial_weights else Preprocessing()
    preprocessing = base.model_copy(update={"image_size": settings.image_size})
    train, held_out = load_splits(shards, settings)
    trainer = ClassifierTrainer(network, preprocessing, settings.task, train, settings.seed, device)
    trainer.fit(settings.epochs, settings.batch_size, settings.learning_rate)
    outputs = trainer.predict(held_out)
    metrics = compute_scores(outputs, held_out.targets, settings.task, names)
    scores = {"split": held_out.split.name, **metrics}
    metadata = {
        "task": settings.task,
        "class_names": names,
        "architecture": architecture,
        "preprocessing": preprocessing,
        "settings": settings.model_dump(),
        "scores": scores,
    }
    write_classifier(out, network, metadata)
    return scores


def init_network(architecture: Architecture, seed: int, initial_weights: Path | None) -> FittedNetwork:
    """Initialize the network from the seed, and its backbone from `initial_weights` if given.

    The caller's random state does not change.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(architecture)
    if initial_weights is not None:
        load_backbone_weights(network.backbone, initial_weights)
    return network


def load_backbone_weights(backbone: nn.Module, path: Path) -> None:
    """Load the weights of a classifier of featgan or of torchvision into a backbone, without those of its head."""
    checkpoint = read_checkpoint(path)
    weights = select_state_dict(checkpoint, backbone, lambda state_dict: drop_head_weights(backbone, state_dict))
    load_state_dict(backbone, weights, path)


def external_preprocessing(network: str) -> Preprocessing:
    """Return the preprocessing of weights from a file: that of the torchvision network, or of ImageNet."""
    if network.startswith("torchvision:"):
        return torchvision_preprocessing(network.removeprefix("torchvision:"))[0]
    return IMAGENET


def load_splits(shards: ShardSet, settings: FitSettings) -> tuple[ClassifierDataset, ClassifierDataset]:
    """Return the dataset to train on, and the dataset to score."""
    train = load_classifier_dataset(shards, "train", settings.task, settings.image_size)
    if "validation" not in shards.split_names:
        logger.warning(f"{shards.location}: no validation split; the scores are computed on the training images")
        return train, train
    return train, load_classifier_dataset(shards, "validation", settings.task, settings.image_size)
