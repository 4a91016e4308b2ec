"""Run torch modules: a forward hook captures the values of any layer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from featgan.blackbox.adapters.base import INPUT_SUFFIX, feature_width, first_tensor, forward_error, unknown_layer_error
from featgan.blackbox.preprocessing import Preprocessing
from featgan.blackbox.spec import BlackBoxSpec, suggest_names
from featgan.blackbox.weights import hash_module
from featgan.errors import UserError

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
    ) -> None:
        """`layer` is the default layer; None selects the input of the last linear layer."""
        self.spec = spec
        self.module = module.eval().requires_grad_(False)
        self.preprocessing = preprocessing
        self.sha256 = hash_module(module, architecture)
        self.configured_layer = layer
        self.selected_layer = ""
        self.captured: Tensor | None = None
        self.linear: nn.Linear | None = None

    def run_module(self, images: Tensor) -> Tensor:
        """Return the outputs; raises UserError if the network cannot run on these images."""
        try:
            with torch.no_grad():
                outputs = first_tensor(self.module(images))
        except Exception as error:  # the network is external code and may raise anything
            raise forward_error(self.spec.name, images.shape, error) from error
        if outputs is None:
            raise UserError(f"{self.spec.name}: the network returns no tensor; wrap it in package.module:callable")
        return outputs

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

        def record_layer(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(module, nn.Linear):
                record_width(name + INPUT_SUFFIX, first_tensor(inputs))
            record_width(name, first_tensor(output))

        def record_width(name: str, tensor: Tensor | None) -> None:
            width = feature_width(tensor.shape) if tensor is not None and tensor.ndim else None
            if width:
                widths[name] = width

        with self.hook_submodules(record_layer):
            self.run_module(images)
        return list(widths.items())

    def default_layer(self, images: Tensor) -> str | None:
        linears: list[tuple[str, nn.Linear]] = []

        def record_linear(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(module, nn.Linear):
                linears.append((name, module))

        with self.hook_submodules(record_linear):
            self.run_module(images)
        if not linears:
            return self.configured_layer
        name, self.linear = linears[-1]
        return self.configured_layer or name + INPUT_SUFFIX

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
        outputs = self.run_module(images)
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
