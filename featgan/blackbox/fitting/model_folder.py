"""The folder of a fitted box: box.json and box.safetensors, nothing that could run."""

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save
from torch import nn

from featgan import __version__
from featgan.blackbox.adapters.torch_module import ModuleNetwork
from featgan.blackbox.fitting.network import Architecture, build_network
from featgan.blackbox.preprocessing import Preprocessing
from featgan.blackbox.spec import Spec
from featgan.blackbox.weights import load_weights, read_weights
from featgan.errors import UserError
from featgan.system.files import explain_write_errors, sha256_of, whole_folder, write_whole

CARD, WEIGHTS = "box.json", "box.safetensors"
MOST_CARD_BYTES = 16 << 20

Target = Literal["expression", "valence_arousal", "attributes", "factors"]


class Card(BaseModel):
    """box.json: what the box is, how it was fitted and how well it does."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal["featgan-box"] = "featgan-box"
    version: Literal[1] = 1
    featgan: str = __version__
    target: Target
    class_names: tuple[str, ...]
    """Names of the outputs."""
    architecture: Architecture
    preprocessing: Preprocessing
    settings: dict[str, Any]
    """Everything that decides the weights; equal settings give an equal box."""
    scores: dict[str, Any]
    weights_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def read_card(folder: Path) -> Card:
    """UserError: not a fitted box, or a damaged box.json, whose settings nobody knows any more."""
    path = folder / CARD
    if not path.is_file():
        raise UserError(f"{folder}: no {CARD}, so this is no fitted box; fit one with `featgan blackbox fit`")
    if path.stat().st_size > MOST_CARD_BYTES:
        raise UserError(f"{path}: larger than {MOST_CARD_BYTES >> 20} MiB; remove {folder} and fit the box again")
    try:
        return Card.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"{path}: damaged ({where}: {first['msg']}); remove {folder} and fit the box again") from error


def write_box(folder: Path, network: nn.Module, card: dict[str, Any]) -> Card:
    """Write the whole folder or nothing, or the two files of a damaged box, one by one and the weights first.

    `card` holds the fields of `Card` but the weights' hash.
    """
    with explain_write_errors(folder, "free some space or choose another --out"):
        if (folder / CARD).is_file():
            return write_files(folder, network, card)
        with whole_folder(folder) as partial:
            return write_files(partial, network, card)


def write_files(folder: Path, network: nn.Module, card: dict[str, Any]) -> Card:
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    write_whole(folder / WEIGHTS, save(weights))
    written = Card(**card, weights_sha256=sha256_of(folder / WEIGHTS))
    write_whole(folder / CARD, (written.model_dump_json(indent=1) + "\n").encode())
    return written


def is_damaged(folder: Path, card: Card) -> bool:
    """Whether a box's weights are missing or not those that its card was written with."""
    path = folder / WEIGHTS
    return not path.is_file() or sha256_of(path) != card.weights_sha256


def open_box(spec: Spec, device: torch.device) -> tuple[ModuleNetwork, Card]:
    """The network of a fitted box, its hidden layer tapped by default; UserError when its weights are not its own."""
    folder = Path(spec.where)
    card = read_card(folder)
    path = folder / WEIGHTS
    if is_damaged(folder, card):
        what = f"not the weights that {CARD} was written with" if path.is_file() else "missing"
        raise UserError(f"{path}: {what}; fit the box again with the same `featgan blackbox fit`, which mends it")
    with torch.random.fork_rng(devices=[]):
        network = build_network(card.architecture)
    load_weights(network, read_weights(path), path)
    description = card.architecture.model_dump_json()
    network = network.to(device).to(memory_format=torch.channels_last)  # half as fast again on CPUs
    return ModuleNetwork(spec, network, card.preprocessing, description, layer="hidden"), card
