"""Read weights from files without executing code in them, load them, and choose the device."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from featgan.blackbox.adapters.base import hash_byte_chunks, summarize_error
from featgan.errors import UserError

STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "net", "model_ema")
"""Keys under which training scripts store the weights in their checkpoints."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict (name => tensor) from a .safetensors or .pth file.

    Raises UserError if the file is missing or corrupted, or contains anything except tensors and plain values.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such weights file; check the path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        hint = "it contains objects other than tensors, which could run code; save its state_dict as .safetensors"
        raise UserError(f"{path}: not loaded: {hint}") from error
    except (OSError, RuntimeError, SafetensorError, EOFError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: not a readable weights file ({summarize_error(error)}); save the state_dict again"
        ) from error
    return extract_state_dict(path, content)


def extract_state_dict(path: Path, content: Any) -> dict[str, Tensor]:
    """Return the state dict inside a checkpoint, without the prefix of data-parallel training."""
    for name in STATE_DICT_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    tensors = content if isinstance(content, Mapping) else {}
    state_dict = {
        str(name).removeprefix("module."): tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)
    }
    if not state_dict:
        raise UserError(f"{path}: contains no state dict; save the network's state_dict as .safetensors")
    return state_dict


def load_state_dict(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load all weights into `model`; raises UserError that lists the tensors that do not match.

    `path` is the file that the weights were read from.
    """
    expected = model.state_dict()
    missing = sorted(expected.keys() - weights.keys())
    unknown = sorted(weights.keys() - expected.keys())
    mismatched = sorted(
        name for name in weights.keys() & expected.keys() if weights[name].shape != expected[name].shape
    )
    for problem, names in (("missing", missing), ("unexpected", unknown), ("wrong shape", mismatched)):
        if names:
            listed_names = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise UserError(
                f"{path}: not the weights of this {type(model).__name__} ({problem}: {listed_names}); "
                "use the weights of the same network"
            )
    model.load_state_dict(dict(weights))


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
