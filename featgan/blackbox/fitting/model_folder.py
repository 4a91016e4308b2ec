"""The folder of a classifier of featgan: classifier.json and classifier.safetensors, without executable code."""

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save
from torch import nn

from featgan import __version__
from featgan.blackbox.adapters.torch_module import ModuleAdapter
from featgan.blackbox.fitting.network import Architecture, build_network
from featgan.blackbox.preprocessing import KIND_DEFAULTS, Preprocessing
from featgan.blackbox.spec import BlackBoxSpec
from featgan.blackbox.weight_names import find_key_problems
from featgan.blackbox.weights import StateDict, load_state_dict, mismatch_error, read_weights
from featgan.config.choices import FittedTask
from featgan.errors import UserError
from featgan.system.files import atomic_folder, atomic_write, sha256_of, user_friendly_write_errors
from featgan.system.json_files import read_json

METADATA_FILE, WEIGHTS_FILE = "classifier.json", "classifier.safetensors"
WRITE_ERROR_REMEDY = "free some space or choose another --out"


class ClassifierMetadata(BaseModel):
    """Content of classifier.json: what the classifier is, how it was trained, and its scores."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal["featgan-classifier"] = "featgan-classifier"
    version: Literal[1] = 1
    featgan: str = __version__
    task: FittedTask
    class_names: tuple[str, ...]
    """Names of the outputs."""
    architecture: Architecture
    preprocessing: Preprocessing
    settings: dict[str, Any]
    """All settings that determine the weights; equal settings give an equal classifier."""
    scores: dict[str, Any]
    weights_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def read_classifier_metadata(folder: Path) -> ClassifierMetadata:
    """Read classifier.json; raises UserError if the folder is not a classifier or the file is corrupted."""
    path = folder / METADATA_FILE
    if not path.is_file():
        raise UserError(
            f"{folder}: not a classifier of featgan (no {METADATA_FILE}); train one with `featgan blackbox fit`"
        )
    remedy = f"remove {folder} and train the classifier again"
    try:
        return ClassifierMetadata.model_validate(read_json(path, remedy=remedy))
    except ValidationError as error:
        first_error = error.errors(include_url=False)[0]
        location = ".".join(str(part) for part in first_error["loc"]) or "the file"
        raise UserError(f"{path}: corrupted ({location}: {first_error['msg']}); {remedy}") from error


def write_classifier(folder: Path, network: nn.Module, metadata: dict[str, Any]) -> ClassifierMetadata:
    """Write the folder atomically; to repair a corrupted classifier, replace its two files, the weights first.

    `metadata` has the fields of `ClassifierMetadata`, except the hash of the weights.
    """
    with user_friendly_write_errors(folder, WRITE_ERROR_REMEDY):
        if (folder / METADATA_FILE).is_file():
            return write_classifier_files(folder, network, metadata)
        with atomic_folder(folder) as partial:
            return write_classifier_files(partial, network, metadata)


def write_classifier_files(folder: Path, network: nn.Module, metadata: dict[str, Any]) -> ClassifierMetadata:
    """Write the weights, then the metadata with their hash."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    atomic_write(folder / WEIGHTS_FILE, save(weights))
    complete_metadata = ClassifierMetadata(**metadata, weights_sha256=sha256_of(folder / WEIGHTS_FILE))
    atomic_write(folder / METADATA_FILE, (complete_metadata.model_dump_json(indent=1) + "\n").encode())
    return complete_metadata


def has_corrupt_weights(folder: Path, metadata: ClassifierMetadata) -> bool:
    """Whether the weights are missing or do not match the checksum in the metadata."""
    path = folder / WEIGHTS_FILE
    return not path.is_file() or sha256_of(path) != metadata.weights_sha256


def check_shapes(architecture: Architecture, weights: StateDict, path: Path) -> None:
    """Raise UserError unless the weights fit the network, before memory is allocated for the network."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = build_network(architecture)
    expected = network.state_dict()
    missing, unexpected = expected.keys() - weights.keys(), weights.keys() - expected.keys()
    problems = find_key_problems(network, weights, missing, unexpected)
    if problems:
        raise mismatch_error(network, path, problems)


def open_fitted_classifier(spec: BlackBoxSpec, device: torch.device) -> tuple[ModuleAdapter, ClassifierMetadata]:
    """Open a classifier of featgan; the default layer is `hidden`. Raises UserError if its weights are corrupted."""
    folder = Path(spec.location)
    metadata = read_classifier_metadata(folder)
    path = folder / WEIGHTS_FILE
    if has_corrupt_weights(folder, metadata):
        problem = f"does not match the checksum in {METADATA_FILE}" if path.is_file() else "missing"
        raise UserError(f"{path}: {problem}; repair it by running the same `featgan blackbox fit` again")
    weights = read_weights(path)
    check_shapes(metadata.architecture, weights, path)
    with torch.random.fork_rng(devices=[]):
        network = build_network(metadata.architecture)
    load_state_dict(network, weights, path)
    description = metadata.architecture.model_dump_json()
    network = network.to(device).to(memory_format=torch.channels_last)  # 1.5 times as fast on CPUs
    return ModuleAdapter(
        spec, network, metadata.preprocessing, description, layer="hidden", source=KIND_DEFAULTS["fitted"].source
    ), metadata
