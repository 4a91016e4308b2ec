"""Torch modules from elsewhere: torchvision, timm, and the user's own code; nothing is ever downloaded."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from featgan.blackbox.adapters.base import Network, cannot_run, first_tensor, hash_parts, no_layer, reason
from featgan.blackbox.adapters.torch_module import ModuleNetwork
from featgan.blackbox.fitting.network import last_linear_module
from featgan.blackbox.preprocessing import IMAGENET, Preprocessing
from featgan.blackbox.spec import Spec, nearest
from featgan.blackbox.weights import load_weights, read_weights
from featgan.errors import UserError
from featgan.system.progress import console

FUNCTION_LAYER = "features"
"""The one layer of a function images => (features, outputs)."""

Factory = Callable[..., nn.Module]


def open_torchvision(spec: Spec, device: torch.device) -> ModuleNetwork:
    """`torchvision:NAME[:weights]`, with ImageNet's preprocessing."""
    known = torchvision.models.list_models(module=torchvision.models)
    if spec.where not in known:
        raise UserError(f"{spec.name}: no such torchvision classifier; {nearest(spec.where, known)}")

    def build(**options: Any) -> nn.Module:
        model: nn.Module = torchvision.models.get_model(spec.where, weights=None, **options)
        return model

    return ModuleNetwork(spec, build_with_weights(spec, build).to(device), IMAGENET, spec.where)


def open_timm(spec: Spec, device: torch.device) -> ModuleNetwork:
    """`timm:NAME[:weights]`, with the preprocessing of timm's own configuration."""
    try:
        import timm
        from timm.data.config import resolve_model_data_config
    except ImportError as error:
        raise UserError(f"{spec.name}: timm is not installed; run `pip install 'featgan[timm]'`") from error
    known = timm.list_models()
    # Names of another form, such as hf-hub:..., would reach for the network.
    if spec.where.split(".")[0] not in known:
        raise UserError(f"{spec.name}: no such timm model; {nearest(spec.where, known)}")

    def build(**options: Any) -> nn.Module:
        model: nn.Module = timm.create_model(spec.where, pretrained=False, **options)
        return model

    model = build_with_weights(spec, build)
    found: dict[str, Any] = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    preprocessing = Preprocessing(
        image_size=found["input_size"][-1], range=(0, 1), mean=tuple(found["mean"]), std=tuple(found["std"])
    )
    return ModuleNetwork(spec, model.to(device), preprocessing, spec.where)


def build_with_weights(spec: Spec, build: Factory) -> nn.Module:
    """The network with the SPEC's weights and as many classes as they have, or with random ones."""
    weights = read_weights(spec.weights) if spec.weights else None
    # Random weights are the same ones every time, and the caller's random state is left alone.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model = build()
            if weights is not None:
                name = last_linear_module(model)[0]
                classifier = weights.get(f"{name}.weight")
                if classifier is not None and len(classifier) != len(model.get_parameter(f"{name}.weight")):
                    model = build(num_classes=len(classifier))
        except (RuntimeError, ValueError, TypeError, ImportError) as error:
            raise UserError(f"{spec.name}: cannot be built ({reason(error)}); use another network") from error
    if weights is None:
        console.print(f"{spec.name}: the weights are RANDOM; name a file of trained ones: {spec.name}:weights.pth")
    else:
        assert spec.weights is not None
        load_weights(model, weights, spec.weights)
    return model


def open_callable(spec: Spec, device: torch.device) -> Network:
    """`package.module:callable`: the user's own code, trusted because the user names it."""
    factory = import_callable(spec)
    try:
        made = factory()
    except Exception as error:  # the user's own code may raise anything
        raise UserError(f"{spec.where}: raised {type(error).__name__} when called ({reason(error)})") from error
    if isinstance(made, nn.Module):
        kind = type(made)
        return ModuleNetwork(spec, made.to(device), Preprocessing(), f"{kind.__module__}.{kind.__qualname__}")
    if callable(made):
        return FunctionNetwork(spec, made, factory)
    wanted = "return a torch module or a function images => (features, outputs)"
    raise UserError(f"{spec.where}: returned {type(made).__name__}; {wanted}")


def import_callable(spec: Spec) -> Callable[[], Any]:
    """Modules of the current folder are found too, after all others."""
    module_name, _, attribute = spec.where.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise UserError(f"{spec.where}: {module_name} has no {attribute}; {reason(error)}") from error
    except Exception as error:  # importing runs the user's own code
        raise UserError(f"{spec.where}: cannot import {module_name} ({reason(error)})") from error
    if not callable(found):
        raise UserError(f"{spec.where}: is a {type(found).__name__} and cannot be called; name a function or class")
    called: Callable[[], Any] = found
    return called


class FunctionNetwork:
    """A function images [N, 3, H, W] => (features, outputs); it has one layer and does its own device placement."""

    def __init__(self, spec: Spec, function: Callable[[Tensor], Any], factory: Callable[[], Any]) -> None:
        self.spec = spec
        self.function = function
        self.preprocessing = Preprocessing()
        self.sha256 = hash_parts([source_of(factory), spec.where.encode()])

    def list_layers(self, images: Tensor) -> list[tuple[str, int]]:
        return [(FUNCTION_LAYER, self(images)[0].flatten(1).shape[1])]

    def default_layer(self, images: Tensor) -> str:
        return FUNCTION_LAYER

    def take(self, layer: str) -> None:
        if layer != FUNCTION_LAYER:
            raise no_layer(self.spec.name, layer, f"the function has one layer, {FUNCTION_LAYER}")

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        try:
            with torch.no_grad():
                found = self.function(images)
        except Exception as error:  # the user's own code may raise anything
            raise cannot_run(self.spec.name, images.shape, error) from error
        pair = tuple(map(first_tensor, found)) if isinstance(found, tuple | list) else ()
        if len(pair) != 2 or pair[0] is None or pair[1] is None:
            raise UserError(f"{self.spec.where}: the function must return the two tensors (features, outputs)")
        return pair[0], pair[1]

    def last_linear(self) -> tuple[Tensor, Tensor] | None:
        return None


def source_of(factory: Callable[[], Any]) -> bytes:
    """The file that defines the callable: all that can be known of a function's content."""
    try:
        return Path(inspect.getfile(inspect.unwrap(factory))).read_bytes()
    except (TypeError, OSError):
        return b""
