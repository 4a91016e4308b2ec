"""Create torch modules from torchvision, timm, and the user's own code. Nothing is downloaded."""

import importlib
import inspect
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from featgan.blackbox.adapters.base import (
    NetworkAdapter,
    first_tensor,
    forward_error,
    hash_byte_chunks,
    summarize_error,
    unknown_layer_error,
)
from featgan.blackbox.adapters.torch_module import ModuleAdapter
from featgan.blackbox.fitting.network import last_linear_module
from featgan.blackbox.preprocessing import IMAGENET, Preprocessing
from featgan.blackbox.spec import BlackBoxSpec, suggest_names
from featgan.blackbox.weights import load_state_dict, read_weights
from featgan.errors import UserError

logger = logging.getLogger(__name__)

FUNCTION_LAYER = "features"
"""Name of the only layer of a function images => (features, outputs)."""

ModelFactory = Callable[..., nn.Module]


def open_torchvision(spec: BlackBoxSpec, device: torch.device) -> ModuleAdapter:
    """Open `torchvision:NAME[:weights]` with the ImageNet preprocessing."""
    model_names = torchvision.models.list_models(module=torchvision.models)
    if spec.location not in model_names:
        raise UserError(f"{spec.name}: no such torchvision classifier; {suggest_names(spec.location, model_names)}")

    def build(**options: Any) -> nn.Module:
        model: nn.Module = torchvision.models.get_model(spec.location, weights=None, **options)
        return model

    return ModuleAdapter(spec, build_with_weights(spec, build).to(device), IMAGENET, spec.location)


def open_timm(spec: BlackBoxSpec, device: torch.device) -> ModuleAdapter:
    """Open `timm:NAME[:weights]` with the preprocessing from timm's model configuration."""
    try:
        import timm
        from timm.data.config import resolve_model_data_config
    except ImportError as error:
        raise UserError(f"{spec.name}: timm is not installed; run `pip install 'featgan[timm]'`") from error
    model_names = timm.list_models()
    # Names of another form, such as hf-hub:..., would access the network.
    if spec.location.split(".")[0] not in model_names:
        raise UserError(f"{spec.name}: no such timm model; {suggest_names(spec.location, model_names)}")

    def build(**options: Any) -> nn.Module:
        model: nn.Module = timm.create_model(spec.location, pretrained=False, **options)
        return model

    model = build_with_weights(spec, build)
    data_config: dict[str, Any] = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    preprocessing = Preprocessing(
        image_size=data_config["input_size"][-1],
        range=(0, 1),
        mean=tuple(data_config["mean"]),
        std=tuple(data_config["std"]),
    )
    return ModuleAdapter(spec, model.to(device), preprocessing, spec.location)


def build_with_weights(spec: BlackBoxSpec, build: ModelFactory) -> nn.Module:
    """Build the network with the weights of the SPEC and their number of classes, or with random weights."""
    weights = read_weights(spec.weights) if spec.weights else None
    # A fixed seed makes random weights reproducible; the caller's random state does not change.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model = build()
            if weights is not None:
                linear_name = last_linear_module(model, spec.name)[0]
                head_weight = weights.get(f"{linear_name}.weight")
                if head_weight is not None and len(head_weight) != len(model.get_parameter(f"{linear_name}.weight")):
                    model = build(num_classes=len(head_weight))
        except (RuntimeError, ValueError, TypeError, ImportError) as error:
            raise UserError(f"{spec.name}: cannot be built ({summarize_error(error)}); use another network") from error
    if weights is None:
        logger.warning(f"{spec.name}: the weights are RANDOM; add a file with trained weights: {spec.name}:weights.pth")
    else:
        assert spec.weights is not None
        load_state_dict(model, weights, spec.weights)
    return model


def open_callable(spec: BlackBoxSpec, device: torch.device) -> NetworkAdapter:
    """Open `package.module:callable`: the user's own code, trusted because the user chose it."""
    factory = import_callable(spec)
    try:
        product = factory()
    except Exception as error:  # the user's own code may raise anything
        raise UserError(
            f"{spec.location}: raised {type(error).__name__} when called without arguments "
            f"({summarize_error(error)}); correct the function"
        ) from error
    if isinstance(product, nn.Module):
        module_type = type(product)
        return ModuleAdapter(
            spec, product.to(device), Preprocessing(), f"{module_type.__module__}.{module_type.__qualname__}"
        )
    if callable(product):
        return FunctionAdapter(spec, product, factory)
    expected = "it must return a torch module or a function images => (features, outputs)"
    raise UserError(f"{spec.location}: returned {type(product).__name__}; {expected}")


def import_callable(spec: BlackBoxSpec) -> Callable[[], Any]:
    """Import the callable; the current folder is searched last."""
    module_name, _, attribute = spec.location.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        imported: Any = importlib.import_module(module_name)
        for name in attribute.split("."):
            imported = getattr(imported, name)
    except AttributeError as error:
        raise UserError(f"{spec.location}: {module_name} has no {attribute}; {summarize_error(error)}") from error
    except Exception as error:  # importing runs the user's own code
        raise UserError(
            f"{spec.location}: cannot import {module_name} ({summarize_error(error)}); "
            "correct the module, or run featgan in the folder that contains it"
        ) from error
    if not callable(imported):
        raise UserError(
            f"{spec.location}: is a {type(imported).__name__} and cannot be called; use a function or class"
        )
    factory: Callable[[], Any] = imported
    return factory


class FunctionAdapter:
    """A function images [N, 3, H, W] => (features, outputs), with one layer, that moves tensors to its own device."""

    def __init__(self, spec: BlackBoxSpec, function: Callable[[Tensor], Any], factory: Callable[[], Any]) -> None:
        self.spec = spec
        self.function = function
        self.preprocessing = Preprocessing()
        self.sha256 = hash_byte_chunks([read_source_file(factory), spec.location.encode()])

    def list_layers(self, images: Tensor) -> list[tuple[str, int]]:
        """Return the only layer, with the width of the features."""
        return [(FUNCTION_LAYER, self(images)[0].flatten(1).shape[1])]

    def default_layer(self, images: Tensor) -> str:
        return FUNCTION_LAYER

    def select_layer(self, layer: str) -> None:
        if layer != FUNCTION_LAYER:
            raise unknown_layer_error(self.spec.name, layer, f"the function has one layer, {FUNCTION_LAYER}")

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        try:
            with torch.no_grad():
                result = self.function(images)
        except Exception as error:  # the user's own code may raise anything
            raise forward_error(self.spec.name, images.shape, error) from error
        tensors = tuple(map(first_tensor, result)) if isinstance(result, tuple | list) else ()
        if len(tensors) != 2 or tensors[0] is None or tensors[1] is None:
            raise UserError(
                f"{self.spec.location}: the function does not return two tensors; let it return (features, outputs)"
            )
        return tensors[0], tensors[1]

    def last_linear(self) -> tuple[Tensor, Tensor] | None:
        return None


def read_source_file(factory: Callable[[], Any]) -> bytes:
    """Return the content of the file that defines the callable, which identifies a function for its hash."""
    try:
        return Path(inspect.getfile(inspect.unwrap(factory))).read_bytes()
    except (TypeError, OSError):
        return b""
