"""Run torch modules: a forward hook captures the values of any layer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featgan.blackbox.adapters.base import (
    INPUT_SUFFIX,
    feature_width,
    first_tensor,
    follows_from,
    forward_error,
    select_output,
    to_feature_vectors,
    unknown_layer_error,
)
from featgan.blackbox.preprocessing import Preprocessing
from featgan.blackbox.spec import BlackBoxSpec, suggest_names
from featgan.blackbox.weights import hash_module
from featgan.errors import UserError


@dataclass(frozen=True)
class HeadCandidate:
    """A layer that may compute the outputs, with its values for the probe images."""

    name: str
    module: nn.Linear | nn.Conv2d
    values: Tensor

    @property
    def num_outputs(self) -> int:
        return len(self.module.weight)


HookCallback = Callable[[str, nn.Module, Any, Any], None]


class ModuleAdapter:
    """A torch module; its layers are its submodules by name, and `NAME:input` is the input of a submodule."""

    def __init__(
        self,
        spec: BlackBoxSpec,
        module: nn.Module,
        preprocessing: Preprocessing,
        architecture: str,
        layer: str | None = None,
        source: str = "",
        class_names: tuple[str, ...] = (),
    ) -> None:
        """`layer` is the default layer; None selects the input of the last linear layer.

        `source` says where the preprocessing comes from; `class_names` are those in the weights file.
        """
        self.spec = spec
        self.module = module.eval().requires_grad_(False)
        self.preprocessing = preprocessing
        self.preprocessing_source = source
        self.class_names = class_names
        self.sha256 = hash_module(module, architecture)
        self.configured_layer = layer
        self.selected_layer = ""
        self.captured: Tensor | None = None
        self.linear: nn.Linear | None = None

    def compute_outputs(self, images: Tensor) -> Tensor:
        """Return the outputs; raises UserError if the network cannot run on these images, or has several outputs."""
        try:
            with torch.no_grad():
                value = self.module(images)
        except Exception as error:  # the network is external code and may raise anything
            raise forward_error(self.spec.name, images.shape, error) from error
        return select_output(self.spec, value)

    @contextmanager
    def hook_submodules(self, callback: HookCallback) -> Iterator[None]:
        """Call `callback(name, module, inputs, output)` for every submodule that runs, in order of completion."""

        def hook_for(name: str) -> Callable[[nn.Module, Any, Any], None]:
            return lambda module, inputs, output: callback(name, module, inputs, output)

        handles = [module.register_forward_hook(hook_for(name)) for name, module in self.module.named_modules() if name]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def list_layers(self, images: Tensor) -> list[tuple[str, int]]:
        widths: dict[str, int] = {}
        default_layer = self.default_layer(images)

        def record_layer(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(module, nn.Linear) or name + INPUT_SUFFIX == default_layer:
                record_width(name + INPUT_SUFFIX, first_tensor(inputs))
            record_width(name, first_tensor(output))

        def record_width(name: str, tensor: Tensor | None) -> None:
            width = feature_width(tensor.shape, len(images)) if tensor is not None and tensor.ndim else None
            if width:
                widths[name] = width

        with self.hook_submodules(record_layer):
            self.compute_outputs(images)
        return list(widths.items())

    def default_layer(self, images: Tensor) -> str | None:
        heads: list[HeadCandidate] = []

        def record_head(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(module, nn.Linear | nn.Conv2d) and isinstance(output, Tensor):
                heads.append(HeadCandidate(name, module, output.clone()))

        with self.hook_submodules(record_head):
            outputs = self.compute_outputs(images)
        head = choose_head(heads, outputs)
        if head is None:
            return self.configured_layer
        self.linear = head.module if isinstance(head.module, nn.Linear) else None
        return self.configured_layer or head.name + INPUT_SUFFIX

    def select_layer(self, layer: str) -> None:
        modules = dict(self.module.named_modules())
        name = layer.removesuffix(INPUT_SUFFIX)
        if not name or name not in modules:
            raise unknown_layer_error(
                self.spec.name, layer, suggest_names(layer, [module_name for module_name in modules if module_name])
            )
        self.selected_layer = layer
        if layer.endswith(INPUT_SUFFIX):
            modules[name].register_forward_pre_hook(lambda module, inputs: self.capture(inputs))
        else:
            modules[name].register_forward_hook(lambda module, inputs, output: self.capture(output))

    def capture(self, value: Any) -> None:
        """Keep a copy of the layer's tensor."""
        tensor = first_tensor(value)
        # A later in-place operation would change the tensor itself.
        self.captured = None if tensor is None else tensor.clone()

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.captured = None
        outputs = self.compute_outputs(images)
        features, self.captured = self.captured, None
        if features is None:
            raise UserError(
                f"{self.spec.name}: layer {self.selected_layer} returns no tensor for images; choose another --layer"
            )
        return features, outputs

    def last_linear(self) -> tuple[Tensor, Tensor] | None:
        if self.linear is None:
            return None
        weight = self.linear.weight.detach()
        return weight, weight.new_zeros(len(weight)) if self.linear.bias is None else self.linear.bias.detach()


def choose_head(heads: Sequence[HeadCandidate], outputs: Tensor) -> HeadCandidate | None:
    """Return the layer that computes the outputs, given the layers in the order of computation.

    This is, if it exists: the linear layer whose values the outputs are, the last layer with as many outputs, or the
    last linear layer.
    """
    num_outputs = to_feature_vectors(outputs).shape[1]
    linears = [head for head in reversed(heads) if isinstance(head.module, nn.Linear)]
    same_values = [head for head in linears if follows_from(head.values, outputs)]
    same_width = [head for head in reversed(heads) if head.num_outputs == num_outputs]
    return next(iter([*same_values, *same_width, *linears]), None)
