"""Weights out of a file, never by executing what is in it, and the device that they go to."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from featgan.blackbox.adapters.base import hash_parts, reason
from featgan.errors import UserError

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "model_ema")
"""Under which training scripts keep the weights in their checkpoints."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Name => tensor out of a .safetensors or a .pth file (tensors only).

    UserError: missing, damaged, or holding anything but tensors and plain values.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        hint = "it holds more than tensors, which could run code; save its state_dict as .safetensors"
        raise UserError(f"{path}: refused: {hint}") from error
    except (OSError, RuntimeError, SafetensorError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a readable weights file ({reason(error)}); save the state_dict again") from error
    return unwrap(path, content)


def unwrap(path: Path, content: Any) -> dict[str, Tensor]:
    """The state dict inside a checkpoint, without the prefix of data-parallel training."""
    for name in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    tensors = content if isinstance(content, Mapping) else {}
    found = {
        str(name).removeprefix("module."): tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)
    }
    if not found:
        raise UserError(f"{path}: holds no state dict; save the network's state_dict as .safetensors")
    return found


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Into `model`, all of them; UserError names what does not fit."""
    expected = model.state_dict()
    missing = sorted(expected.keys() - weights.keys())
    unknown = sorted(weights.keys() - expected.keys())
    wrong = sorted(name for name in weights.keys() & expected.keys() if weights[name].shape != expected[name].shape)
    for what, names in (("lacks", missing), ("has besides", unknown), ("has in another shape", wrong)):
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise UserError(f"{path}: not the weights of this {type(model).__name__}: it {what} {shown}")
    model.load_state_dict(dict(weights))


def hash_module(module: nn.Module, architecture: str) -> str:
    """sha256 over the architecture's description and every parameter and buffer."""
    parts: list[bytes | memoryview] = [architecture.encode()]
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        parts.append(f"{name} {values.dtype} {list(values.shape)}".encode())
        parts.append(values.reshape(-1).view(torch.uint8).numpy().data if values.numel() else b"")
    return hash_parts(parts)


def choose_device(device: str | torch.device | None) -> torch.device:
    """The one asked for, else a GPU where there is one."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
