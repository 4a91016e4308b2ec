"""Create torch modules from torchvision, timm, and the user's own code. Nothing is downloaded."""

import importlib
import inspect
import logging
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featgan.blackbox.adapters.base import (
    NetworkAdapter,
    first_tensor,
    forward_error,
    hash_byte_chunks,
    list_tensors,
    select_output,
    summarize_error,
    unknown_layer_error,
)
from featgan.blackbox.adapters.torch_module import ModuleAdapter
from featgan.blackbox.fitting.network import find_head_module
from featgan.blackbox.preprocessing import KIND_DEFAULTS, Preprocessing
from featgan.blackbox.spec import BlackBoxSpec, suggest_names
from featgan.blackbox.torchvision_models import (
    AUXILIARY_MODELS,
    AUXILIARY_PREFIXES,
    build_torchvision,
    check_torchvision_name,
    torchvision_preprocessing,
)
from featgan.blackbox.weight_names import COUNTER_SUFFIX, rename_head
from featgan.blackbox.weights import load_state_dict, read_checkpoint, select_state_dict
from featgan.errors import UserError

logger = logging.getLogger(__name__)

FUNCTION_LAYER = "features"
"""Name of the only layer of a function images => (features, outputs)."""

ModelFactory = Callable[..., nn.Module]


def open_torchvision(spec: BlackBoxSpec, device: torch.device) -> ModuleAdapter:
    """Open `torchvision:NAME[:weights]` with the preprocessing of the default weights of that network."""
    check_torchvision_name(spec.location, spec.name)
    # Random initial weights that a file replaces are not needed, and slow.
    slow_options = {"init_weights": False} if spec.weights and spec.location in AUXILIARY_MODELS else {}

    def build(**options: Any) -> nn.Module:
        return build_torchvision(spec.location, **slow_options, **options)

    def adapt(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in weights.items() if not name.startswith(AUXILIARY_PREFIXES)}

    model, class_names = build_with_weights(spec, build, adapt)
    preprocessing, source = torchvision_preprocessing(spec.location)
    return ModuleAdapter(spec, model.to(device), preprocessing, spec.location, source=source, class_names=class_names)


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

    model, class_names = build_with_weights(spec, build, apply_timm_filter)
    data_config: dict[str, Any] = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    preprocessing, source = timm_preprocessing(model, data_config)
    return ModuleAdapter(spec, model.to(device), preprocessing, spec.location, source=source, class_names=class_names)


def timm_preprocessing(model: nn.Module, data_config: Mapping[str, Any]) -> tuple[Preprocessing, str]:
    """Return the preprocessing in a model's configuration, and where it comes from; the whole image is used."""
    size, interpolation = data_config["input_size"][-1], data_config["interpolation"]
    preprocessing = Preprocessing(
        image_size=size,
        range=(0, 1),
        mean=tuple(data_config["mean"]),
        std=tuple(data_config["std"]),
        # timm's "random" and "lanczos" are used in training.
        interpolation=interpolation if interpolation in ("bilinear", "bicubic", "nearest") else "bicubic",
    )
    config: Any = getattr(model, "pretrained_cfg", {})
    name = ".".join(str(config[key]) for key in ("architecture", "tag") if config.get(key))
    source = f"timm's pretrained_cfg of {name}"
    resize_size = math.floor(size / data_config["crop_pct"])
    if resize_size > size:
        source += f", without its crop of the center {size} of {resize_size} pixels"
    return preprocessing, source


def apply_timm_filter(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of original repositories with the function that timm has for this network, if needed."""
    name_filter = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    required = {name for name in model.state_dict() if not name.endswith(COUNTER_SUFFIX)}
    if name_filter is None or required <= weights.keys():
        return weights
    try:
        filtered: dict[str, Tensor] = name_filter(dict(weights), model)
    except Exception:  # the function expects files of certain repositories
        return weights
    return filtered if len(required & filtered.keys()) >= len(required & weights.keys()) else weights


def build_with_weights(
    spec: BlackBoxSpec, build: ModelFactory, adapt: Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]]
) -> tuple[nn.Module, tuple[str, ...]]:
    """Build the network with the weights of the SPEC and their number of classes, or with random weights.

    `adapt` renames the weights for the network. Returns the network and the class names in the file.
    """
    checkpoint = read_checkpoint(spec.weights) if spec.weights else None
    weights: dict[str, Tensor] = {}
    # A fixed seed makes random weights reproducible; the caller's random state does not change.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model = build()
            if checkpoint is not None:
                weights = select_state_dict(checkpoint, model, lambda found: adapt_head(spec, model, adapt, found))
                num_classes = count_classes(spec, model, weights)
                if num_classes is not None:
                    model = build(num_classes=num_classes)
        except (RuntimeError, ValueError, TypeError, ImportError) as error:
            raise UserError(f"{spec.name}: cannot be built ({summarize_error(error)}); use another network") from error
    if checkpoint is None:
        logger.warning(f"{spec.name}: the weights are RANDOM; add a file with trained weights: {spec.name}:weights.pth")
        return model, ()
    load_state_dict(model, weights, checkpoint.path)
    return model, checkpoint.class_names


def adapt_head(
    spec: BlackBoxSpec,
    model: nn.Module,
    adapt: Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]],
    weights: dict[str, Tensor],
) -> dict[str, Tensor]:
    """Rename the weights for the network, and those of a head that was replaced by a Sequential."""
    name, head = find_head_module(model, spec.name)
    adapted = adapt(model, weights)
    return rename_head(adapted, name, head.in_features) if isinstance(head, nn.Linear) else adapted


def count_classes(spec: BlackBoxSpec, model: nn.Module, weights: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes in the weights, or None if it is that of the network."""
    name, head = find_head_module(model, spec.name)
    weight = weights.get(f"{name}.weight")
    return None if weight is None or weight.ndim == 0 or len(weight) == len(head.weight) else len(weight)


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
            spec,
            product.to(device),
            Preprocessing(),
            f"{module_type.__module__}.{module_type.__qualname__}",
            source=KIND_DEFAULTS["callable"].source,
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
        self.preprocessing_source = KIND_DEFAULTS["callable"].source
        self.class_names: tuple[str, ...] = ()
        self.sha256 = hash_byte_chunks([read_source_file(factory), spec.location.encode()])

    def list_layers(self, images: Tensor) -> list[tuple[str, int]]:
        """Return the only layer, with the width of the features."""
        return [(FUNCTION_LAYER, self(images)[0].flatten(1).shape[1])]

    def default_layer(self, images: Tensor) -> str:
        return FUNCTION_LAYER

    def select_layer(self, layer: str) -> None:
        if layer != FUNCTION_LAYER:
            raise unknown_layer_error(self.spec.name, layer, f"the function has one layer, {FUNCTION_LAYER}")

    def compute_outputs(self, images: Tensor) -> Tensor:
        return self(images)[1]

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        try:
            with torch.no_grad():
                result = self.function(images)
        except Exception as error:  # the user's own code may raise anything
            raise forward_error(self.spec.name, images.shape, error) from error
        if not isinstance(result, tuple | list) or len(result) != 2 or not all(map(list_tensors, result)):
            raise UserError(
                f"{self.spec.location}: the function does not return two tensors; let it return (features, outputs)"
            )
        features = first_tensor(result[0])
        assert features is not None
        return features, select_output(self.spec, result[1])

    def last_linear(self) -> tuple[Tensor, Tensor] | None:
        return None


def read_source_file(factory: Callable[[], Any]) -> bytes:
    """Return the content of the file that defines the callable, which identifies a function for its hash."""
    try:
        return Path(inspect.getfile(inspect.unwrap(factory))).read_bytes()
    except (TypeError, OSError):
        return b""
