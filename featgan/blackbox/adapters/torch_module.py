"""Torch modules as black boxes: any layer by its name, caught by a forward hook."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from featgan.blackbox.adapters.base import INPUT, cannot_run, first_tensor, no_layer, width_of
from featgan.blackbox.preprocessing import Preprocessing
from featgan.blackbox.spec import Spec, nearest
from featgan.blackbox.weights import hash_module
from featgan.errors import UserError

Seen = Callable[[str, nn.Module, Any, Any], None]


class ModuleNetwork:
    """A torch module; layers are its submodules by name, `NAME:input` is what goes into one."""

    def __init__(
        self, spec: Spec, module: nn.Module, preprocessing: Preprocessing, architecture: str, layer: str | None = None
    ) -> None:
        """`layer` is the default one, the input of the last linear layer if None."""
        self.spec = spec
        self.module = module.eval().requires_grad_(False)
        self.preprocessing = preprocessing
        self.sha256 = hash_module(module, architecture)
        self.layer = layer
        self.tapped = ""
        self.caught: Tensor | None = None
        self.linear: nn.Linear | None = None

    def run(self, images: Tensor) -> Tensor:
        """The outputs; UserError says why the network cannot run on these images."""
        try:
            with torch.no_grad():
                outputs = first_tensor(self.module(images))
        except Exception as error:  # the network is foreign code: anything may go wrong in it
            raise cannot_run(self.spec.name, images.shape, error) from error
        if outputs is None:
            raise UserError(f"{self.spec.name}: the network returns no tensor; wrap it in package.module:callable")
        return outputs

    @contextmanager
    def watch(self, seen: Seen) -> Iterator[None]:
        """`seen(name, module, inputs, output)` is called for every submodule that runs, in order of completion."""

        def hook_for(name: str) -> Callable[[nn.Module, Any, Any], None]:
            return lambda module, inputs, output: seen(name, module, inputs, output)

        handles = [module.register_forward_hook(hook_for(name)) for name, module in self.module.named_modules() if name]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def list_layers(self, images: Tensor) -> list[tuple[str, int]]:
        widths: dict[str, int] = {}

        def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(module, nn.Linear):
                add(name + INPUT, first_tensor(inputs))
            add(name, first_tensor(output))

        def add(name: str, tensor: Tensor | None) -> None:
            width = width_of(tensor.shape) if tensor is not None and tensor.ndim else None
            if width:
                widths[name] = width

        with self.watch(note):
            self.run(images)
        return list(widths.items())

    def default_layer(self, images: Tensor) -> str | None:
        linears: list[tuple[str, nn.Linear]] = []

        def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(module, nn.Linear):
                linears.append((name, module))

        with self.watch(note):
            self.run(images)
        if not linears:
            return self.layer
        name, self.linear = linears[-1]
        return self.layer or name + INPUT

    def take(self, layer: str) -> None:
        modules = dict(self.module.named_modules())
        name = layer.removesuffix(INPUT)
        if not name or name not in modules:
            raise no_layer(self.spec.name, layer, nearest(layer, [known for known in modules if known]))
        self.tapped = layer
        if layer.endswith(INPUT):
            modules[name].register_forward_pre_hook(lambda module, inputs: self.catch(inputs))
        else:
            modules[name].register_forward_hook(lambda module, inputs, output: self.catch(output))

    def catch(self, value: Any) -> None:
        tensor = first_tensor(value)
        # A later operation in place would change the tensor itself.
        self.caught = None if tensor is None else tensor.clone()

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.caught = None
        outputs = self.run(images)
        features, self.caught = self.caught, None
        if features is None:
            raise UserError(f"{self.spec.name}: layer {self.tapped} gives no tensor on images; choose another --layer")
        return features, outputs

    def last_linear(self) -> tuple[Tensor, Tensor] | None:
        if self.linear is None:
            return None
        weight = self.linear.weight.detach()
        return weight, weight.new_zeros(len(weight)) if self.linear.bias is None else self.linear.bias.detach()
