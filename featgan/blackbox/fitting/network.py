"""The network of a fitted box: a backbone, a 64-d hidden layer whose activations are the features, the outputs."""

from collections.abc import Mapping
from typing import Annotated

import torchvision
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from featgan.blackbox.spec import nearest
from featgan.errors import UserError

STAGES = ((16, 1), (32, 1), (64, 2), (128, 2))
"""Channels (times the width) and convolutions of each stage of the VGG-style backbone; pooling halves after each."""

NEGATIVE_SLOPE = 0.1
"""Of the hidden layer's leaky ReLU: units of a plain one die, and cannot be asked for less than nothing."""


class Architecture(BaseModel):
    """What a fitted network is built from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: str = "vgg"
    """`vgg` or `torchvision:NAME`."""
    width: Annotated[float, Field(ge=0.125, le=8)] = 1.0
    """Factor on the channels of `vgg`."""
    hidden_dim: Annotated[int, Field(ge=1, le=4096)] = 64
    output_dim: Annotated[int, Field(ge=1, le=4096)]


class FittedNetwork(nn.Module):
    """images [N, 3, H, W] => outputs [N, O]; the features are what `hidden` gives [N, hidden_dim]."""

    def __init__(self, backbone: nn.Module, backbone_dim: int, hidden_dim: int, output_dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.hidden = nn.Sequential(
            # Normalised before the activation, no unit can fall silent on all images.
            nn.Linear(backbone_dim, hidden_dim, bias=False),
            nn.BatchNorm1d(hidden_dim),
            nn.LeakyReLU(NEGATIVE_SLOPE),
        )
        self.output = nn.Linear(hidden_dim, output_dim)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.output(self.hidden(self.backbone(images)))
        return outputs


def build_network(architecture: Architecture) -> FittedNetwork:
    """With fresh weights out of torch's random state; UserError for an unknown network."""
    if architecture.network == "vgg":
        backbone, backbone_dim = build_vgg(architecture.width)
    elif architecture.network.startswith("torchvision:"):
        if architecture.width != 1:
            raise UserError(f"width {architecture.width}: only the network vgg has a width; leave it at 1")
        backbone, backbone_dim = build_backbone(architecture.network.removeprefix("torchvision:"))
    else:
        raise UserError(f"unknown network {architecture.network!r}; use vgg or torchvision:NAME")
    return FittedNetwork(backbone, backbone_dim, architecture.hidden_dim, architecture.output_dim)


def build_vgg(width: float) -> tuple[nn.Module, int]:
    """3 x 3 convolutions with batch norm and ReLU, a max-pool after each stage, at the end the mean over space."""
    layers: list[nn.Module] = []
    channels = 3
    for number, (stage_channels, num_convolutions) in enumerate(STAGES):
        if number:
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        for _ in range(num_convolutions):
            wanted = max(8, 8 * round(stage_channels * width / 8))
            layers += [nn.Conv2d(channels, wanted, 3, padding=1, bias=False), nn.BatchNorm2d(wanted), nn.ReLU(True)]
            channels = wanted
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), channels


def build_backbone(name: str) -> tuple[nn.Module, int]:
    """A torchvision classifier without its last linear layer, and how wide what it gives is."""
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise UserError(f"unknown network torchvision:{name}; {nearest(name, known)}")
    model = torchvision.models.get_model(name, weights=None)
    linear_name, linear = last_linear_module(model)
    model.set_submodule(linear_name, nn.Identity())
    return model, linear.in_features


def last_linear_module(model: nn.Module) -> tuple[str, nn.Linear]:
    """The linear layer defined last: the classifier's; UserError when there is none."""
    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise UserError(f"{type(model).__name__} has no linear layer to replace; use another network")
    return linears[-1]


def backbone_weights(backbone: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a fitted box or a whole classifier that belong to its backbone."""
    replaced = {name for name, module in backbone.named_modules() if isinstance(module, nn.Identity)}
    own = {name.removeprefix("backbone."): tensor for name, tensor in weights.items() if name.startswith("backbone.")}
    return {name: tensor for name, tensor in (own or weights).items() if name.rpartition(".")[0] not in replaced}
