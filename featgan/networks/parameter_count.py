"""Count the parameters of a network before memory is allocated for them."""

from collections.abc import Callable

import torch
from torch import nn

from featgan.errors import UserError
from featgan.system.limits import MAX_PARAMETERS


def describe_shapes(build_network: Callable[[], nn.Module]) -> dict[str, torch.Size]:
    """Return the shape of every tensor of a network by name, without allocating them."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in build_network().state_dict().items()}


def check_parameter_count(build_network: Callable[[], nn.Module], name: str) -> None:
    """Raise UserError if a network would have too many parameters; `name` is the section of the configuration."""
    count = sum(shape.numel() for shape in describe_shapes(build_network).values())
    if count > MAX_PARAMETERS:
        raise UserError(
            f"{name}.dim: the {name} has {count:,} parameters, but at most {MAX_PARAMETERS:,} are allowed; lower it"
        )
