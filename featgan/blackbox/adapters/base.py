"""What all kinds of networks share: tensors to feature vectors, the head, and one line out of a foreign error."""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from featgan.blackbox.preprocessing import Preprocessing
from featgan.errors import UserError

MOST_FEATURES = 16384
"""Widest layer that is taken."""

NUM_PROBES = 3
"""Images of a trial run; what has another first dimension than these is no feature of an image."""

INPUT = ":input"
"""Behind a layer's name: what goes into it instead of what comes out."""


class Network(Protocol):
    """A network of any kind, with one of its layers tapped."""

    preprocessing: Preprocessing
    """What it expects unless the user knows better."""
    sha256: str
    """Of its weights and architecture."""

    def list_layers(self, images: Tensor) -> list[tuple[str, int]]:
        """Names and widths of what can be taken, in the order of computation, found by running preprocessed images."""

    def default_layer(self, images: Tensor) -> str | None:
        """What goes into the last linear layer, found by running preprocessed images; None when there is none."""

    def take(self, layer: str) -> None:
        """Tap a layer; UserError when there is no such layer."""

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Preprocessed images => what the tapped layer holds, and the outputs, in their own shapes."""

    def last_linear(self) -> tuple[Tensor, Tensor] | None:
        """Weight [O, F] and bias [O] of the last linear layer, once `default_layer` has looked for it."""


def width_of(shape: Iterable[int]) -> int | None:
    """Features that a tensor of this shape gives an image, maps being averaged; None when it gives none."""
    num_images, *rest = shape
    width = rest[0] if len(rest) == 3 else int(torch.Size(rest).numel())
    return width if num_images == NUM_PROBES and 1 <= width <= MOST_FEATURES else None


def as_vectors(tensor: Tensor) -> Tensor:
    """[N, C, H, W] => the mean over space [N, C]; anything else is flattened to [N, F]."""
    tensor = tensor.float()
    return tensor.mean((2, 3)) if tensor.ndim == 4 else tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None]


def first_tensor(value: Any) -> Tensor | None:
    """The tensor in what a network returns: itself, or the first of a tuple, list or dictionary."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return next((found for part in value if (found := first_tensor(part)) is not None), None)
    return None


def find_head(features: Tensor, outputs: Tensor, linear: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
    """The last linear layer, on the CPU, if it reads the outputs off the features, up to a softmax or sigmoid."""
    if linear is None or linear[0].shape != (outputs.shape[1], features.shape[1]):
        return None
    weight, bias = (tensor.detach().float() for tensor in linear)
    logits = F.linear(features, weight.to(features.device), bias.to(features.device))
    endings: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda values: values,
        lambda values: values.softmax(1),
        lambda values: values.log_softmax(1),
        torch.sigmoid,
    )
    if not any(close(ending(logits), outputs) for ending in endings):
        return None
    return weight.cpu().contiguous(), bias.cpu().contiguous()


def close(computed: Tensor, found: Tensor) -> bool:
    """Equal but for rounding, seen from the largest value."""
    return float((computed - found).abs().max()) <= 2e-3 * float(found.abs().max().clamp_min(1e-12))


def hash_parts(parts: Iterable[bytes | memoryview]) -> str:
    """sha256 over parts; each is preceded by its length, so that no two lists of parts run together alike."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.hexdigest()


def no_layer(spec: str, layer: str, known: str) -> UserError:
    return UserError(f"{spec}: no layer {layer!r}; {known}; `featgan extract --list-layers` shows what can be taken")


def no_linear(spec: str) -> UserError:
    return UserError(
        f"{spec}: no linear layer at the end; name a layer with --layer (`featgan extract --list-layers` shows them)"
    )


def cannot_run(spec: str, shape: Iterable[int], error: Exception) -> UserError:
    """A foreign network that failed on images of a shape."""
    hint = "if that is not its input, say so: SPEC?image_size=...&layout=...&channels=..."
    return UserError(f"{spec}: cannot run on images {' x '.join(map(str, shape))} ({reason(error)}); {hint}")


def reason(error: BaseException) -> str:
    """The line of a foreign error that says most, shortened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    interpreter = bool(lines) and lines[0].startswith("The following operation failed")
    line = (lines[-1] if interpreter else lines[0]) if lines else type(error).__name__
    return line if len(line) <= 200 else f"{line[:200]}..."
