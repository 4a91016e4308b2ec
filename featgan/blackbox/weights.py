"""Read weights from files without executing code in them, load them, and choose the device."""

import argparse
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar
from torch import Tensor, nn

from featgan.blackbox.adapters.base import hash_byte_chunks, summarize_error
from featgan.blackbox.class_names import find_class_names
from featgan.blackbox.weight_names import KeyProblems, adapt_names, find_key_problems
from featgan.errors import UserError
from featgan.system.tensor_files import read_safetensors
from featgan.system.torch_files import check_torch_file, make_plain_dtype

logger = logging.getLogger(__name__)

STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "model_ema", "ema")
"""Keys under which training scripts store the weights in their checkpoints, the preferred ones first."""

MAX_NESTING = 3
"""Maximum depth of the weights in a checkpoint."""

PLAIN_TYPES: list[Any] = [
    argparse.Namespace,
    (make_plain_dtype, "numpy.dtype"),
    # numpy 1 and numpy 2 write the same function under different names.
    *((scalar, f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")),
    *(type(np.dtype(name)) for name in ("float32", "float64", "int32", "int64", "bool")),
]
"""Types besides tensors that training scripts store: their arguments and scores. Creating one runs no other code."""

StateDict = Mapping[str, Tensor]
NameFilter = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """The content of a weights file."""

    path: Path
    state_dicts: dict[str, StateDict]
    """The state dicts in the file by key, the preferred one first; the key is "" at the top level."""
    class_names: tuple[str, ...] = ()
    """Names of the classes, if the file contains them."""


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the state dicts and the class names in a .safetensors or .pth file.

    Raises UserError if the file is missing or corrupted, contains objects that could run code, or no state dict.
    """
    content = read_content(path)
    state_dicts = dict(find_state_dicts(content))
    if not state_dicts:
        raise UserError(f"{path}: contains no state dict; save the network's state_dict as .safetensors")
    ordered = dict(sorted(state_dicts.items(), key=lambda item: rank_key(item[0])))
    return Checkpoint(path, ordered, find_class_names(content))


def read_content(path: Path) -> Any:
    """Return what a weights file contains; raises UserError as `read_checkpoint` does."""
    if not path.is_file():
        raise UserError(f"{path}: no such weights file; check the path")
    try:
        if path.suffix == ".safetensors":
            return read_safetensors(path)
        check_torch_file(path)
        with torch.serialization.safe_globals(PLAIN_TYPES):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except UnpicklingError as error:
        hint = "which could run code; save its weights alone: torch.save(model.state_dict(), FILE)"
        raise UserError(f"{path}: not loaded: it contains {describe_objects(path)}, {hint}") from error
    except Exception as error:  # PyTorch raises assertions, type and attribute errors too for damaged files
        raise UserError(
            f"{path}: not a readable weights file ({summarize_error(error)}); save the state_dict again"
        ) from error


def describe_objects(path: Path) -> str:
    """Return which objects besides tensors a file contains: a whole network, or the names of the first types."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # as above
        names = []
    networks = [name for name in names if name.startswith(("torch.nn.modules.", "torchvision.models.", "timm."))]
    if networks:
        return f"a whole pickled network ({', '.join(sorted(networks)[:3])})"
    return f"objects other than tensors ({', '.join(sorted(names)[:3])})" if names else "objects other than tensors"


def find_state_dicts(content: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, StateDict]]:
    """Yield every state dict in a checkpoint with its key; a state dict maps names to tensors."""
    if not isinstance(content, Mapping) or depth > MAX_NESTING:
        return
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if any("." in name for name in tensors):
        yield key, keep_metadata(content, tensors)
        return
    nested = [
        found
        for name, value in content.items()
        for found in find_state_dicts(value, f"{key}.{name}" if key else str(name), depth + 1)
    ]
    yield from nested
    if tensors and not nested and depth < 2:  # a network of one layer
        yield key, keep_metadata(content, tensors)


def keep_metadata(content: Mapping[str, Any], tensors: dict[str, Tensor]) -> StateDict:
    """Return the tensors with the versions of the modules, which `load_state_dict` reads, if the file has them."""
    state_dict = MetadataDict(tensors)
    state_dict._metadata = getattr(content, "_metadata", None)
    return state_dict


class MetadataDict(dict[str, Tensor]):
    """A state dict with the attribute that torch stores the versions of the modules in."""

    _metadata: Any = None


def rank_key(key: str) -> tuple[int, int]:
    """Return the rank of a key of a checkpoint: known keys first, then short ones."""
    last = key.rpartition(".")[2]
    rank = STATE_DICT_KEYS.index(last) if last in STATE_DICT_KEYS else len(STATE_DICT_KEYS)
    return rank if key else -1, key.count(".")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the preferred state dict (name => tensor) of a weights file. Raises UserError as `read_checkpoint` does."""
    first = next(iter(read_checkpoint(path).state_dicts.values()))
    return {name.removeprefix("module."): tensor for name, tensor in first.items()}


def load_state_dict(model: nn.Module, weights: StateDict, path: Path) -> None:
    """Load all weights into `model`; raises UserError that lists the names that do not match.

    `path` is the file that the weights were read from.
    """
    problems = try_metadata(model, weights)
    if problems:
        raise mismatch_error(model, path, problems)


def mismatch_error(model: nn.Module, path: Path, problems: KeyProblems) -> UserError:
    """Create the error for a file whose names are not those of the network."""
    return UserError(
        f"{path}: not the weights of this {type(model).__name__} ({problems}); use the weights of the same network"
    )


def select_state_dict(checkpoint: Checkpoint, model: nn.Module, adapt: NameFilter) -> dict[str, Tensor]:
    """Return the state dict of the checkpoint that fits the model best, with its names after `adapt`.

    Among equals, the preferred key is used, and a line says so.
    """
    expected = set(model.state_dict())
    adapted = {
        key: adapt(adapt_names(state_dict, expected)) for key, state_dict in checkpoint.state_dicts.items()
    }  # fmt: skip
    scores = {key: len(expected & weights.keys()) for key, weights in adapted.items()}
    best = max(adapted, key=lambda key: scores[key])
    others = [key for key in adapted if key != best and scores[key] == scores[best]]
    if others:
        logger.info(f"{checkpoint.path}: using {best!r} of the state dicts {', '.join([best, *others])}")
    result = MetadataDict(adapted[best])
    result._metadata = getattr(checkpoint.state_dicts[best], "_metadata", None)
    return result


def try_metadata(model: nn.Module, weights: StateDict) -> KeyProblems:
    """Load the weights and return what does not match.

    The hooks of the library depend on the version of each module, which some files have lost. The versions in the file
    are tried first, then those of the network, then none.
    """
    fresh = getattr(model.state_dict(), "_metadata", None)
    attempts = [getattr(weights, "_metadata", None), fresh, None]
    problems: list[KeyProblems] = []
    for metadata in attempts:
        state_dict = MetadataDict(weights)
        state_dict._metadata = metadata
        problems.append(load_once(model, state_dict))
        if not problems[-1]:
            break
    return min(problems, key=len)


def load_once(model: nn.Module, state_dict: MetadataDict) -> KeyProblems:
    """Load a state dict as far as possible and return what does not match."""
    try:
        result = model.load_state_dict(state_dict, strict=False)
        return find_key_problems(model, state_dict, result.missing_keys, result.unexpected_keys)
    except (RuntimeError, ValueError):  # a wrong shape, or a version that a hook does not know
        expected = model.state_dict()
        missing = [name for name in expected if name not in state_dict]
        unexpected = [name for name in state_dict if name not in expected]
        return find_key_problems(model, state_dict, missing, unexpected)


def hash_module(module: nn.Module, architecture: str) -> str:
    """Compute a sha256 over the description of the architecture and every parameter and buffer."""
    chunks: list[bytes | memoryview] = [architecture.encode()]
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        chunks.append(f"{name} {values.dtype} {list(values.shape)}".encode())
        chunks.append(values.reshape(-1).view(torch.uint8).numpy().data if values.numel() else b"")
    return hash_byte_chunks(chunks)


def choose_device(device: str | torch.device | None) -> torch.device:
    """Return the given device; if it is None, a GPU if available, else the CPU."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
