"""Build torchvision classifiers, and take their preprocessing from the weights that torchvision publishes for them."""

from typing import Any

import torchvision
from torch import nn
from torchvision.transforms import InterpolationMode

from featgan.blackbox.preprocessing import IMAGENET, Preprocessing
from featgan.blackbox.spec import suggest_names
from featgan.errors import UserError

AUXILIARY_MODELS = ("inception_v3", "googlenet")
"""Networks with auxiliary classifiers, which are only used in training, and their own scaling of the input."""

AUXILIARY_PREFIXES = ("AuxLogits.", "aux1.", "aux2.")
"""Beginnings of the names of the auxiliary classifiers' weights."""

INTERPOLATIONS = {
    InterpolationMode.BILINEAR: "bilinear",
    InterpolationMode.BICUBIC: "bicubic",
    InterpolationMode.NEAREST: "nearest",
}


def check_torchvision_name(name: str, location: str) -> None:
    """Raise UserError that begins with `location` unless torchvision has a classifier of this name."""
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise UserError(f"{location}: no such torchvision classifier; {suggest_names(name, names)}")


def build_torchvision(name: str, **options: Any) -> nn.Module:
    """Build a classifier with random weights, without auxiliary classifiers and without scaling of its input.

    With its published weights, torchvision's Inception-v3 and GoogLeNet scale their input by themselves;
    `torchvision_preprocessing` contains that scaling instead.
    """
    if name in AUXILIARY_MODELS:
        options = {"aux_logits": False, "transform_input": False, "init_weights": True} | options
    model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return model


def torchvision_preprocessing(name: str) -> tuple[Preprocessing, str]:
    """Return the preprocessing of the default weights of a classifier, and where it comes from.

    The whole image is resized to the size of the network, because faces are already cropped; torchvision resizes to a
    larger size and crops the center.
    """
    weights = torchvision.models.get_model_weights(name)
    if not len(weights):
        return IMAGENET, "the ImageNet default of torchvision"
    default = weights.DEFAULT  # type: ignore[attr-defined]
    transforms = default.transforms()
    mean, std = tuple(transforms.mean), tuple(transforms.std)
    source = f"torchvision's {weights.__name__}.{default.name}"
    if name in AUXILIARY_MODELS:
        # Its transform_input maps the input (x - mean) / std to (x - 0.5) / 0.5.
        mean = std = (0.5, 0.5, 0.5)
        source += " with its transform_input"
    size, resize_size = transforms.crop_size[0], transforms.resize_size[0]
    if resize_size > size:
        source += f", without its crop of the center {size} of {resize_size} pixels"
    preprocessing = Preprocessing(
        image_size=size,
        range=(0, 1),
        mean=mean,
        std=std,
        interpolation=INTERPOLATIONS[transforms.interpolation],  # type: ignore[arg-type]
    )
    return preprocessing, source
