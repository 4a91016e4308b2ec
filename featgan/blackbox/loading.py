"""Load a black box from its SPEC: images in [-1, 1] => the features of one of its layers, and its outputs."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from featgan.blackbox.adapters.base import (
    NUM_PROBE_IMAGES,
    NetworkAdapter,
    find_linear_head,
    hash_byte_chunks,
    no_linear_layer_error,
    to_feature_vectors,
)
from featgan.blackbox.adapters.batching import choose_batching
from featgan.blackbox.adapters.factories import FunctionAdapter, open_callable, open_timm, open_torchvision
from featgan.blackbox.adapters.onnx import OnnxAdapter
from featgan.blackbox.adapters.torchscript import TorchScriptAdapter
from featgan.blackbox.class_names import format_class_names, parse_class_names
from featgan.blackbox.fitting.model_folder import open_fitted_classifier
from featgan.blackbox.isolation import check_foreign_model
from featgan.blackbox.preprocessing import Preprocessing
from featgan.blackbox.spec import OUTPUT_OPTIONS, BlackBoxSpec, parse_spec
from featgan.config.choices import EXTERNAL_TASKS
from featgan.config.trusted_callables import NO_CALLABLES, TrustedCallables, UntrustedCallableError
from featgan.errors import UserError
from featgan.system.limits import MAX_FEATURES
from featgan.system.memory import choose_batch_size

logger = logging.getLogger(__name__)

PROBE_IMAGE_SIZE = 112
"""Width and height in pixels of the probe images if the network does not define its input size."""

ADAPTER_OPENERS: dict[str, Callable[[BlackBoxSpec, torch.device], NetworkAdapter]] = {
    "torchvision": open_torchvision,
    "timm": open_timm,
    "torchscript": TorchScriptAdapter,
    "onnx": OnnxAdapter,
    "callable": open_callable,
}


class BlackBox:
    """A classifier that returns the features of one of its layers and its outputs.

    `head` is the linear layer from features to outputs, if there is one: weight [O, F] and bias [O]. The outputs are
    then the logits of that layer, even if the network ends in a softmax or sigmoid.
    """

    def __init__(
        self,
        spec: BlackBoxSpec,
        network: NetworkAdapter,
        layer: str | None,
        device: torch.device,
        task: str,
        class_names: tuple[str, ...],
    ) -> None:
        """Raises UserError if the layer does not exist or gives no feature vectors, or if the network does not run."""
        self.spec = str(spec)
        self.network = network
        self.device = device
        self.preprocessing = network.preprocessing.with_options(spec.preprocessing, spec.name)
        self.image_size = self.preprocessing.image_size
        self.input_description = describe_input(spec, network, self.preprocessing)
        self.sha256 = hash_byte_chunks([network.sha256.encode(), self.preprocessing.hash_text().encode()])
        self.task = task
        probe = make_probe_images(self.preprocessing, device)
        if needs_batching_check(spec, network):
            network = self.network = choose_batching(network, self.preprocessing(probe), spec.name)
        default_layer = network.default_layer(self.preprocessing(probe))
        if layer is None and default_layer is None:
            raise no_linear_layer_error(spec.name)
        self.layer = layer or default_layer or ""
        network.select_layer(self.layer)
        self.head: tuple[Tensor, Tensor] | None = None
        features, outputs = self.run_probe(spec, probe)
        self.head = find_linear_head(features, outputs, network.last_linear())
        self.feature_dim, self.output_dim = features.shape[1], outputs.shape[1]
        self.class_names = resolve_class_names(spec, task, class_names, network.class_names, self.output_dim)

    def run_probe(self, spec: BlackBoxSpec, probe: Tensor) -> tuple[Tensor, Tensor]:
        """Return features [n, F] and outputs [n, O] of the probe images.

        Raises UserError unless both are one vector of at most MAX_FEATURES values for each image.
        """
        features, outputs = self(probe)
        for description, values in ((f"layer {self.layer}", features), ("its output", outputs)):
            if len(values) != NUM_PROBE_IMAGES:
                raise UserError(f"{spec.name}: {description} is not one vector for each image; choose another --layer")
            if not 1 <= values.shape[1] <= MAX_FEATURES:
                limit = f"the maximum is {MAX_FEATURES}"
                raise UserError(
                    f"{spec.name}: {description} has {values.shape[1]} values; {limit}; choose another --layer"
                )
        return features, outputs

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images, float [N, 3, H, W] in [-1, 1] of any size => float32 features [N, F] and outputs [N, O]."""
        batch_size = choose_batch_size(self.image_size or images.shape[-1], max(1, len(images)))
        batches = [self.run_batch(batch) for batch in images.split(batch_size)]
        if len(batches) == 1:
            return batches[0]
        features, outputs = zip(*batches, strict=True)
        return torch.cat(features), torch.cat(outputs)

    def run_batch(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Run the network on images that fit into memory together."""
        features, outputs = self.network(self.preprocessing(images.to(self.device)))
        features, outputs = to_feature_vectors(features), to_feature_vectors(outputs)
        if self.head is not None:
            outputs = F.linear(features, *(tensor.to(features.device) for tensor in self.head))
        return features, outputs


def load_blackbox(
    spec: str,
    layer: str | None = None,
    device: str | torch.device = "cpu",
    preprocessing: Mapping[str, Any] | None = None,
    task: str | None = None,
    trusted: TrustedCallables = NO_CALLABLES,
) -> BlackBox:
    """Load the network that SPEC names; features come from `layer` (by default the input of the last linear layer).

    `preprocessing` overrides options of the network's preprocessing: image_size, mean, std, range, layout, channels.
    The `spec` of the returned black box contains all options. `trusted` are the callables that may be imported.

    Raises UserError with a one-line message if the SPEC cannot be used.
    """
    parsed, network, parsed_task, class_names = open_network(spec, device, preprocessing, task, trusted)
    return BlackBox(parsed, network, layer, torch.device(device), parsed_task, class_names)


def list_layers(
    spec: str,
    device: str | torch.device = "cpu",
    preprocessing: Mapping[str, Any] | None = None,
    trusted: TrustedCallables = NO_CALLABLES,
) -> list[tuple[str, int]]:
    """List the names and widths of the layers that `load_blackbox` accepts, in the order of computation."""
    parsed, network, _, _ = open_network(spec, device, preprocessing, trusted=trusted)
    network_preprocessing = network.preprocessing.with_options(parsed.preprocessing, parsed.name)
    logger.info(describe_input(parsed, network, network_preprocessing))
    images = network_preprocessing(make_probe_images(network_preprocessing, torch.device(device)))
    if needs_batching_check(parsed, network):
        network = choose_batching(network, images, parsed.name)
    return network.list_layers(images)


def describe_input(spec: BlackBoxSpec, network: NetworkAdapter, preprocessing: Preprocessing) -> str:
    """Describe the preprocessing of a network in one line, and where it comes from."""
    given = f"; {', '.join(spec.preprocessing)} from the SPEC" if spec.preprocessing else ""
    return f"{spec.name}: input {preprocessing} (from {network.preprocessing_source}{given})"


def needs_batching_check(spec: BlackBoxSpec, network: NetworkAdapter) -> bool:
    """Whether a network may depend on the batch size: files can, and modules of other people's code."""
    return spec.kind in ("torchscript", "onnx", "callable") and not isinstance(network, FunctionAdapter)


def open_network(
    spec_text: str,
    device: str | torch.device,
    preprocessing: Mapping[str, Any] | None = None,
    task: str | None = None,
    trusted: TrustedCallables = NO_CALLABLES,
) -> tuple[BlackBoxSpec, NetworkAdapter, str, tuple[str, ...]]:
    """Return the parsed SPEC, its network, the task, and the output names if they are known."""
    spec = parse_spec(spec_text, **(preprocessing or {}), task=task)
    if spec.kind == "fitted":
        for name in OUTPUT_OPTIONS:
            if name in spec.options:
                raise UserError(
                    f"{spec.name}: a classifier of `featgan blackbox fit` defines its own outputs; "
                    f"remove the option {name}"
                )
        network, metadata = open_fitted_classifier(spec, torch.device(device))
        return spec, network, metadata.task, metadata.class_names
    if spec.kind == "callable" and not trusted.includes(spec.location):
        raise UntrustedCallableError(
            f"{spec.location}: Python code that was not named on the command line, so it is not imported; "
            f"if you trust it, give it with --blackbox {spec.location}, or add --trust-callables"
        )
    external_task = spec.options.get("task", "other")
    if external_task not in EXTERNAL_TASKS:
        raise UserError(f"{spec.name}: unknown task {external_task!r}; use one of {', '.join(EXTERNAL_TASKS)}")
    class_names = parse_class_names(spec.options.get("classes", ""))
    if class_names:  # the names, not the path of a file that can change
        spec = replace(spec, options={**spec.options, "classes": format_class_names(class_names)})
    if spec.kind in ("torchscript", "onnx"):
        check_foreign_model(spec)
    return spec, ADAPTER_OPENERS[spec.kind](spec, torch.device(device)), external_task, class_names


def resolve_class_names(
    spec: BlackBoxSpec, task: str, class_names: tuple[str, ...], network_names: tuple[str, ...], output_dim: int
) -> tuple[str, ...]:
    """Return the given output names, else those in the file of the network, else none.

    Raises UserError if the number of given names, or of the names of the task, differs from the number of outputs, and
    if attributes have no names.
    """
    if task == "valence_arousal":
        class_names = class_names or ("valence", "arousal")
    if class_names and len(class_names) != output_dim:
        mismatch = f"{len(class_names)} names for {output_dim} outputs"
        raise UserError(f"{spec.name}: {mismatch}; list the names in order: SPEC?classes=neutral,happy,...")
    if not class_names and network_names and len(network_names) != output_dim:
        logger.warning(f"{spec.name}: ignoring the {len(network_names)} class names in the file: {output_dim} outputs")
        return ()
    if task == "attributes" and not class_names and not network_names:
        raise UserError(
            f"{spec.name}: no names for {output_dim} outputs; list them in order: SPEC?classes=smile,beard,..."
        )
    return class_names or network_names


def make_probe_images(preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """Create the probe images: smooth noise in [-1, 1], always the same."""
    size = preprocessing.image_size or PROBE_IMAGE_SIZE
    coarse = torch.rand(NUM_PROBE_IMAGES, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    return (F.interpolate(coarse, (size, size), mode="bilinear") * 2 - 1).to(device)
