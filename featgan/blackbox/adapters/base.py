"""Code shared by all adapters: the adapter protocol, feature vectors, the linear head, and one-line errors."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from featgan.blackbox.preprocessing import Preprocessing
from featgan.blackbox.spec import BlackBoxSpec
from featgan.errors import UserError
from featgan.system.limits import MAX_FEATURES

NUM_PROBE_IMAGES = 3
"""Number of probe images; a tensor with another first dimension does not hold one vector for each image."""

MAX_ERROR_LENGTH = 240
MAX_LISTED = 12
"""Maximum number of outputs that a message lists."""

DEVICE_ERRORS = (
    "same device", "no nvidia driver", "not compiled with cuda", "no cuda gpus", "cuda backend", "device type"
)  # fmt: skip
SHAPE_ERRORS = ("is invalid for input of size", "cannot be reshaped", "invalid dimensions for input")
OPERATOR_ERRORS = ("unknown builtin op", "no op named", "not a registered function/op")

INPUT_SUFFIX = ":input"
"""Suffix of a layer name that selects the layer's input instead of its output."""


class NetworkAdapter(Protocol):
    """A network of any kind that returns the values of one selected layer together with its outputs."""

    preprocessing: Preprocessing
    """Default preprocessing, which SPEC options can override."""
    preprocessing_source: str
    """Where the default preprocessing comes from."""
    class_names: tuple[str, ...]
    """Names of the outputs, if the file of the network contains them."""
    sha256: str
    """Hash of the weights and the architecture."""

    def list_layers(self, images: Tensor) -> list[tuple[str, int]]:
        """Run preprocessed images; list the names and widths of the available layers in the order of computation."""

    def default_layer(self, images: Tensor) -> str | None:
        """Run preprocessed images; return the input of the layer that computes the outputs.

        This is the last linear layer, or the last convolution of a network without one; None if there is neither.
        """

    def compute_outputs(self, images: Tensor) -> Tensor:
        """Preprocessed images => the outputs in their original shape."""

    def select_layer(self, layer: str) -> None:
        """Select the layer whose values are the features; raises UserError if it does not exist."""

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Preprocessed images => the values of the selected layer, and the outputs, in their original shapes."""

    def last_linear(self) -> tuple[Tensor, Tensor] | None:
        """Return weight [O, F] and bias [O] of the last linear layer; call `default_layer` first."""


def feature_width(shape: Iterable[int], count: int) -> int | None:
    """Return the number of features per image in a tensor of this shape, feature maps averaged; None if unusable.

    `count` is the number of images that were run.
    """
    num_images, *feature_dims = shape
    if num_images != count:
        return None
    width = feature_dims[find_channel_axis(shape) - 1] if len(feature_dims) == 3 else torch.Size(feature_dims).numel()
    return width if 1 <= width <= MAX_FEATURES else None


def find_channel_axis(shape: Iterable[int]) -> int:
    """Return the axis of the channels in feature maps: 1 for [N, C, H, W], 3 for [N, H, W, C].

    Images are square, so the maps are too. [N, C, H, W] is assumed if all three sizes are equal.
    """
    _, first, second, third = shape
    return 3 if first == second != third else 1


def to_feature_vectors(tensor: Tensor) -> Tensor:
    """Average feature maps over space, [N, C, H, W] or [N, H, W, C] => [N, C]; flatten any other shape to [N, F]."""
    tensor = tensor.float()
    if tensor.ndim == 4:
        return tensor.mean((2, 3) if find_channel_axis(tensor.shape) == 1 else (1, 2))
    return tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None]


def first_tensor(value: Any) -> Tensor | None:
    """Return the first tensor in the value of a layer: the value itself, or an item of a tuple, list or dict."""
    return next(iter(list_tensors(value).values()), None)


def list_tensors(value: Any, name: str = "") -> dict[str, Tensor]:
    """List all tensors in the output of a network by name: the keys of dicts, fields of named tuples, and numbers."""
    if isinstance(value, Tensor):
        return {name: value}
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = list(zip(getattr(value, "_fields", map(str, range(len(value)))), value, strict=True))
    else:
        return {}
    return {
        found: tensor
        for key, item in items
        for found, tensor in list_tensors(item, f"{name}.{key}" if name else key).items()
    }


def select_output(spec: BlackBoxSpec, value: Any) -> Tensor:
    """Return the tensor of a network's output that the option `output` of the SPEC selects, or the only one.

    Raises UserError that lists the tensors if there are several and none is selected, or if the option is not one of
    them. The auxiliary outputs of torchvision's networks, which are only used in training, do not count.
    """
    found = list_tensors(value)
    if not found:
        raise UserError(f"{spec.name}: the network returns no tensor; wrap it in package.module:callable")
    usable = {name: tensor for name, tensor in found.items() if tensor.ndim and tensor.is_floating_point()} or found
    return usable[select_output_name(spec, {name: list(tensor.shape[1:]) for name, tensor in usable.items()})]


def select_output_name(spec: BlackBoxSpec, shapes: Mapping[str, Sequence[Any]]) -> str:
    """Return the name of the selected output, given the shape of each output for one image, as `select_output` does."""
    names, choice = list(shapes), spec.options.get("output")
    if choice is not None and choice in names:
        return choice
    if choice is not None and choice.isdecimal() and int(choice) < len(names):
        return names[int(choice)]
    listed = ", ".join(f"{name or 'the only one'} ({format_shape(shapes[name])})" for name in names[:MAX_LISTED])
    listed += f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    if choice is not None:
        raise UserError(f"{spec.name}: no output {choice!r}; the outputs are {listed}; choose one with SPEC?output=...")
    main_names = [name for name in names if not name.rpartition(".")[2].startswith("aux_logits")]
    if len(main_names) == 1:
        return main_names[0]
    example = next((name for name in names if len(shapes[name]) == 1), names[0])
    raise UserError(
        f"{spec.name}: the network has {len(names)} outputs: {listed}; choose one, for example SPEC?output={example}"
    )


def format_shape(shape: Sequence[Any]) -> str:
    """Format the shape of the values for one image: `68 x 16 x 16`, or `1` for a single number."""
    return " x ".join(str(size) for size in shape) or "1"


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
    if not follows_from(logits, outputs):
        return None
    return weight.cpu().contiguous(), bias.cpu().contiguous()


def follows_from(logits: Tensor, outputs: Tensor) -> bool:
    """Whether the outputs [N, O] are the logits [N, O], or their softmax, log-softmax or sigmoid."""
    activations: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda values: values,
        lambda values: values.softmax(1),
        lambda values: values.log_softmax(1),
        torch.sigmoid,
    )
    return logits.shape == outputs.shape and any(is_close(activation(logits), outputs) for activation in activations)


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
        f"{spec}: no linear layer or convolution at the end; choose a layer with --layer "
        "(`featgan extract --list-layers` lists the available layers)"
    )


def forward_error(spec: str, shape: Iterable[int], error: Exception) -> UserError:
    """Create the error for a network that failed on images of the given shape."""
    hint = suggest_remedy(str(error))
    return UserError(f"{spec}: cannot run on images {' x '.join(map(str, shape))} ({summarize_error(error)}); {hint}")


def suggest_remedy(message: str) -> str:
    """Return a remedy for the error of a network that failed on images, by the cause in its message."""
    lowered = message.lower()
    if "out of memory" in lowered or "can't allocate" in lowered or "failed to allocate" in lowered:
        return "use a smaller --batch-size or SPEC?image_size=..."
    if any(text in lowered for text in DEVICE_ERRORS):
        return "the file contains a fixed device; save it again on the CPU, or trace it on the device that runs it"
    if any(text in lowered for text in SHAPE_ERRORS):
        return "a size is fixed in the file: give the one that it was saved with, SPEC?image_size=..."
    if any(text in lowered for text in OPERATOR_ERRORS):
        return "this version does not have an operator of the network; install the package that defines it"
    return "if this is not the expected input, specify it: SPEC?image_size=...&layout=...&channels=..."


def summarize_error(error: BaseException) -> str:
    """Return the most informative line of an external error, shortened to MAX_ERROR_LENGTH characters.

    The cause is in the last line of a trace of TorchScript, and at the end of the long lines of onnxruntime.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    is_trace = bool(lines) and lines[0].startswith(("The following operation failed", "Traceback"))
    line = (lines[-1] if is_trace else lines[0]) if lines else type(error).__name__
    line = line.rpartition("Status Message: ")[2]
    if len(line) <= MAX_ERROR_LENGTH:
        return line
    return f"{line[: MAX_ERROR_LENGTH // 3]} ... {line[-MAX_ERROR_LENGTH * 2 // 3 :]}"
