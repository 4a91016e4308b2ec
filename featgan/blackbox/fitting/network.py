"""The network that `featgan blackbox fit` trains: a backbone, a 64-dimensional hidden layer, and an output layer."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from featgan.blackbox.torchvision_models import AUXILIARY_PREFIXES, build_torchvision, check_torchvision_name
from featgan.errors import UserError

VGG_STAGES = ((16, 1), (32, 1), (64, 2), (128, 2))
"""Channels (at width 1) and number of convolutions of each stage of the VGG-style backbone; pooling follows each."""

NEGATIVE_SLOPE = 0.1
"""Negative slope of the hidden layer's leaky ReLU. ReLU units can die, and their features have no values below 0."""


class Architecture(BaseModel):
    """All settings that the network is built from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: str = "vgg"
    """`vgg` or `torchvision:NAME`."""
    width: Annotated[float, Field(ge=0.125, le=8)] = 1.0
    """Multiplier for the number of channels of `vgg`."""
    hidden_dim: Annotated[int, Field(ge=1, le=4096)] = 64
    output_dim: Annotated[int, Field(ge=1, le=4096)]


class FittedNetwork(nn.Module):
    """Images [N, 3, H, W] => outputs [N, O]; the features are the output of `hidden` [N, hidden_dim]."""

    def __init__(self, backbone: nn.Module, backbone_dim: int, hidden_dim: int, output_dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.hidden = nn.Sequential(
            # Normalization before the activation keeps every unit active on some images.
            nn.Linear(backbone_dim, hidden_dim, bias=False),
            nn.BatchNorm1d(hidden_dim),
            nn.LeakyReLU(NEGATIVE_SLOPE),
        )
        self.output = nn.Linear(hidden_dim, output_dim)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.output(self.hidden(self.backbone(images)))
        return outputs


def build_network(architecture: Architecture) -> FittedNetwork:
    """Build a network with random weights from torch's random state; raises UserError if the network is unknown."""
    if architecture.network == "vgg":
        backbone, backbone_dim = build_vgg(architecture.width)
    elif architecture.network.startswith("torchvision:"):
        if architecture.width != 1:
            raise UserError(f"--width {architecture.width}: only the network vgg has a width; leave it at 1")
        backbone, backbone_dim = build_backbone(architecture.network.removeprefix("torchvision:"))
    else:
        raise UserError(f"--network {architecture.network}: unknown network; use vgg or torchvision:NAME")
    return FittedNetwork(backbone, backbone_dim, architecture.hidden_dim, architecture.output_dim)


def build_vgg(width: float) -> tuple[nn.Module, int]:
    """Build the backbone: 3 x 3 convolutions with batch norm and ReLU, max pooling between stages, and global average
    pooling. Returns it and its output width.
    """
    layers: list[nn.Module] = []
    channels = 3
    for stage_index, (stage_channels, num_convolutions) in enumerate(VGG_STAGES):
        if stage_index:
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        for _ in range(num_convolutions):
            out_channels = max(8, 8 * round(stage_channels * width / 8))
            layers += [
                nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(True),
            ]
            channels = out_channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), channels


def build_backbone(name: str) -> tuple[nn.Module, int]:
    """Build a torchvision classifier without its last layer; return it and its output width."""
    location = f"--network torchvision:{name}"
    check_torchvision_name(name, location)
    model = build_torchvision(name)
    head_name, head = find_head_module(model, location)
    model.set_submodule(head_name, nn.Identity())
    return model, head.in_features if isinstance(head, nn.Linear) else head.in_channels


def find_head_module(model: nn.Module, location: str) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Return the linear layer that is defined last, or the last convolution of a network without linear layers.

    Raises UserError that begins with `location` if there is neither.
    """
    modules = [(name, module) for name, module in model.named_modules() if name]
    linears = [(name, module) for name, module in modules if isinstance(module, nn.Linear)]
    convolutions = [(name, module) for name, module in modules if isinstance(module, nn.Conv2d)]
    if not linears and not convolutions:
        raise UserError(f"{location}: has no linear layer to replace; use another network")
    return linears[-1] if linears else convolutions[-1]


def drop_head_weights(backbone: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights without those of the head that the backbone no longer has, and of auxiliary classifiers."""
    replaced = tuple(f"{name}." for name, module in backbone.named_modules() if isinstance(module, nn.Identity))
    expected = backbone.state_dict()
    return {
        name: tensor
        for name, tensor in weights.items()
        if name in expected or not name.startswith(replaced + AUXILIARY_PREFIXES)
    }
