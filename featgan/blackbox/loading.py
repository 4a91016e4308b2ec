"""A black box from anywhere: images in [-1, 1] => the features of one of its layers, and its outputs."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from featgan.blackbox.adapters.base import (
    MOST_FEATURES,
    NUM_PROBES,
    Network,
    as_vectors,
    find_head,
    hash_parts,
    no_linear,
)
from featgan.blackbox.adapters.factories import open_callable, open_timm, open_torchvision
from featgan.blackbox.adapters.onnx import OnnxNetwork
from featgan.blackbox.adapters.torchscript import TorchScriptNetwork
from featgan.blackbox.fitting.model_folder import open_box
from featgan.blackbox.preprocessing import Preprocessing
from featgan.blackbox.spec import OUTPUT_OPTIONS, Spec, parse_spec
from featgan.errors import UserError

EXPRESSION_NAMES = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt")
"""What the outputs of a foreign box are called, in this order, when it is said to tell expressions (7 or 8)."""

FOREIGN_KINDS = ("expression", "valence_arousal", "attributes", "other")
"""What a foreign box may be said to tell."""

PROBE_SIZE = 112
"""Side in pixels of the images of a trial run, where the network does not say what it takes."""

OPENERS: dict[str, Callable[[Spec, torch.device], Network]] = {
    "torchvision": open_torchvision,
    "timm": open_timm,
    "torchscript": TorchScriptNetwork,
    "onnx": OnnxNetwork,
    "callable": open_callable,
}


class BlackBox:
    """A network with one layer tapped.

    `head` is the linear layer from features to outputs, where there is one: weight [O, F] and bias [O]. Outputs are
    then its logits, also where the network itself ends in a softmax or sigmoid.
    """

    def __init__(
        self, spec: Spec, network: Network, layer: str | None, device: torch.device, kind: str, names: tuple[str, ...]
    ) -> None:
        """UserError: no such layer, a layer that gives no features, or a network that does not run."""
        self.spec = str(spec)
        self.network = network
        self.device = device
        self.preprocessing = network.preprocessing.changed(spec.preprocessing, spec.name)
        self.image_size = self.preprocessing.image_size
        self.sha256 = hash_parts([network.sha256.encode(), self.preprocessing.model_dump_json().encode()])
        self.output_kind = kind
        probe = probe_images(self.preprocessing, device)
        found = network.default_layer(self.preprocessing(probe))
        if layer is None and found is None:
            raise no_linear(spec.name)
        self.layer = layer or found or ""
        network.take(self.layer)
        self.head: tuple[Tensor, Tensor] | None = None
        features, outputs = self.measure(spec, probe)
        self.head = find_head(features, outputs, network.last_linear())
        self.feature_dim, self.output_dim = features.shape[1], outputs.shape[1]
        self.class_names = name_outputs(spec, kind, names, self.output_dim)

    def measure(self, spec: Spec, probe: Tensor) -> tuple[Tensor, Tensor]:
        """Features and outputs of a trial run; UserError unless both are one vector of sane width an image."""
        features, outputs = self(probe)
        for what, values in ((f"layer {self.layer}", features), ("its output", outputs)):
            if len(values) != NUM_PROBES:
                raise UserError(f"{spec.name}: {what} is not one vector an image; choose another --layer")
            if not 1 <= values.shape[1] <= MOST_FEATURES:
                most = f"at most {MOST_FEATURES} can be taken"
                raise UserError(f"{spec.name}: {what} has {values.shape[1]} numbers; {most}; choose another --layer")
        return features, outputs

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """float [N, 3, H, W] in [-1, 1], any size => float32 features [N, F] and outputs [N, O], without gradient."""
        features, outputs = self.network(self.preprocessing(images.to(self.device)))
        features, outputs = as_vectors(features), as_vectors(outputs)
        if self.head is not None:
            outputs = F.linear(features, *(tensor.to(features.device) for tensor in self.head))
        return features, outputs


def load_blackbox(
    spec: str,
    layer: str | None = None,
    device: str | torch.device = "cpu",
    preprocessing: Mapping[str, Any] | None = None,
    output_kind: str | None = None,
) -> BlackBox:
    """Open the network that SPEC names and tap `layer` (the input of the last linear layer by default).

    `preprocessing` overrides parts of what the network expects: image_size, mean, std, range, layout, channels. The
    box's own `spec` holds all options. UserError, in one line, for everything that can be wrong with a SPEC.
    """
    parsed, network, kind, names = open_network(spec, device, preprocessing, output_kind)
    return BlackBox(parsed, network, layer, torch.device(device), kind, names)


def list_layers(
    spec: str, device: str | torch.device = "cpu", preprocessing: Mapping[str, Any] | None = None
) -> list[tuple[str, int]]:
    """Names and widths of the layers that `load_blackbox` can take, in the order of computation."""
    parsed, network, _, _ = open_network(spec, device, preprocessing)
    fitting = network.preprocessing.changed(parsed.preprocessing, parsed.name)
    return network.list_layers(fitting(probe_images(fitting, torch.device(device))))


def open_network(
    text: str,
    device: str | torch.device,
    preprocessing: Mapping[str, Any] | None = None,
    output_kind: str | None = None,
) -> tuple[Spec, Network, str, tuple[str, ...]]:
    """The network that SPEC names, what its outputs are, and their names as far as they are known."""
    spec = parse_spec(text, **(preprocessing or {}), output_kind=output_kind)
    if spec.kind == "box":
        for name in OUTPUT_OPTIONS:
            if name in spec.options:
                raise UserError(f"{spec.name}: a fitted box knows its outputs; leave {name} out")
        network, card = open_box(spec, torch.device(device))
        return spec, network, card.target, card.class_names
    kind = spec.options.get("output_kind", "other")
    if kind not in FOREIGN_KINDS:
        raise UserError(f"{spec.name}: output_kind {kind!r}; it can be {', '.join(FOREIGN_KINDS)}")
    names = tuple(name for name in spec.options.get("classes", "").split(",") if name)
    return spec, OPENERS[spec.kind](spec, torch.device(device)), kind, names


def name_outputs(spec: Spec, kind: str, names: tuple[str, ...], output_dim: int) -> tuple[str, ...]:
    """Names of the outputs: those given, else the usual ones of their kind; UserError when they are not as many."""
    if kind == "valence_arousal":
        names = names or ("valence", "arousal")
    if not names and kind == "expression":
        names = EXPRESSION_NAMES[:output_dim] if output_dim >= 7 else ()
    if len(names) != output_dim and (names or kind != "other"):
        have = f"{len(names) or 'no'} names for {output_dim} outputs"
        raise UserError(f"{spec.name}: {have}; name them in order: SPEC?classes=neutral,happy,...")
    return names


def probe_images(preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """A few images of smooth noise in [-1, 1], always the same."""
    size = preprocessing.image_size or PROBE_SIZE
    coarse = torch.rand(NUM_PROBES, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    return (F.interpolate(coarse, (size, size), mode="bilinear") * 2 - 1).to(device)
