"""Code shared by all adapters: the adapter protocol, feature vectors, the linear head, and one-line errors."""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from featgan.blackbox.preprocessing import Preprocessing
from featgan.errors import UserError

MAX_FEATURES = 16384
"""Maximum width of a layer that can be used."""

NUM_PROBE_IMAGES = 3
"""Number of probe images; a tensor with another first dimension does not hold one vector for each image."""

INPUT_SUFFIX = ":input"
"""Suffix of a layer name that selects the layer's input instead of its output."""


class NetworkAdapter(Protocol):
    """A network of any kind that returns the values of one selected layer together with its outputs."""

    preprocessing: Preprocessing
    """Default preprocessing, which SPEC options can override."""
    sha256: str
    """Hash of the weights and the architecture."""

    def list_layers(self, images: Tensor) -> list[tuple[str, int]]:
        """Run preprocessed images; list the names and widths of the available layers in the order of computation."""

    def default_layer(self, images: Tensor) -> str | None:
        """Run preprocessed images; return the input of the last linear layer, or None if there is no such layer."""

    def select_layer(self, layer: str) -> None:
        """Select the layer whose values are the features; raises UserError if it does not exist."""

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Preprocessed images => the values of the selected layer, and the outputs, in their original shapes."""

    def last_linear(self) -> tuple[Tensor, Tensor] | None:
        """Return weight [O, F] and bias [O] of the last linear layer; call `default_layer` first."""


def feature_width(shape: Iterable[int]) -> int | None:
    """Return the number of features per image in a tensor of this shape, feature maps averaged; None if unusable."""
    num_images, *feature_dims = shape
    width = feature_dims[0] if len(feature_dims) == 3 else int(torch.Size(feature_dims).numel())
    return width if num_images == NUM_PROBE_IMAGES and 1 <= width <= MAX_FEATURES else None


def to_feature_vectors(tensor: Tensor) -> Tensor:
    """Average feature maps over space, [N, C, H, W] => [N, C]; flatten any other shape to [N, F]."""
    tensor = tensor.float()
    return tensor.mean((2, 3)) if tensor.ndim == 4 else tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None]


def first_tensor(value: Any) -> Tensor | None:
    """Return the first tensor in the output of a network: the value itself, or an item of a tuple, list or dict."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return next((tensor for item in value if (tensor := first_tensor(item)) is not None), None)
    return None


def find_linear_head(
    features: Tensor, outputs: Tensor, linear: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor] | None:
    """Return the last linear layer, on the CPU, if it maps the features to the outputs, else None.

    A softmax, log-softmax or sigmoid may follow the layer. Features [N, F], outputs [N, O].
    """
    if linear is None or linear[0].shape != (outputs.shape[1], features.shape[1]):
        return None
    weight, bias = (tensor.detach().float() for tensor in linear)
    logits = F.linear(features, weight.to(features.device), bias.to(features.device))
    activations: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda values: values,
        lambda values: values.softmax(1),
        lambda values: values.log_softmax(1),
        torch.sigmoid,
    )
    if not any(is_close(activation(logits), outputs) for activation in activations):
        return None
    return weight.cpu().contiguous(), bias.cpu().contiguous()


def is_close(computed: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are equal up to rounding, relative to the largest value."""
    return float((computed - expected).abs().max()) <= 2e-3 * float(expected.abs().max().clamp_min(1e-12))


def hash_byte_chunks(chunks: Iterable[bytes | memoryview]) -> str:
    """Compute a sha256 over chunks; each is preceded by its length, so that chunk boundaries change the hash."""
    hasher = hashlib.sha256()
    for chunk in chunks:
        hasher.update(len(chunk).to_bytes(8, "little"))
        hasher.update(chunk)
    return hasher.hexdigest()


def unknown_layer_error(spec: str, layer: str, suggestion: str) -> UserError:
    """Create the error for a layer that does not exist."""
    return UserError(
        f"{spec}: no layer {layer!r}; {suggestion}; `featgan extract --list-layers` lists the available layers"
    )


def no_linear_layer_error(spec: str) -> UserError:
    """Create the error for a network without a default layer."""
    return UserError(
        f"{spec}: no linear layer at the end; choose a layer with --layer "
        "(`featgan extract --list-layers` lists the available layers)"
    )


def forward_error(spec: str, shape: Iterable[int], error: Exception) -> UserError:
    """Create the error for a network that failed on images of the given shape."""
    hint = "if this is not the expected input, specify it: SPEC?image_size=...&layout=...&channels=..."
    return UserError(f"{spec}: cannot run on images {' x '.join(map(str, shape))} ({summarize_error(error)}); {hint}")


def summarize_error(error: BaseException) -> str:
    """Return the most informative line of an external error, shortened to 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    is_torchscript_trace = bool(lines) and lines[0].startswith("The following operation failed")
    line = (lines[-1] if is_torchscript_trace else lines[0]) if lines else type(error).__name__
    return line if len(line) <= 200 else f"{line[:200]}..."
