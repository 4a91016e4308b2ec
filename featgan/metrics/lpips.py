"""LPIPS (Zhang et al. 2018), a distance of pictures that follows people's judgement, from weights the user gives."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.image.lpips import _LPIPS

from featgan.blackbox.weights import load_weights, read_weights
from featgan.errors import UserError
from featgan.metrics.bootstrap import Floats
from featgan.metrics.preservation import in_batches

SMALLEST = 64
"""Side to which smaller pictures are enlarged: the patches that LPIPS was fitted on had it."""

Kind = Literal["alex", "vgg"]

FIRST_LAYERS: dict[tuple[int, ...], Kind] = {(64, 3, 11, 11): "alex", (64, 3, 3, 3): "vgg"}
"""Shape of torchvision's `features.0.weight` => the network it belongs to."""


class Lpips:
    """torchmetrics' network with its own small heads, which travel with that package, on the user's backbone."""

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        """`path` holds torchvision's weights of alexnet or vgg16, else UserError; nothing is downloaded."""
        weights = {
            name.removeprefix("features."): tensor
            for name, tensor in read_weights(path).items()
            if name.startswith("features.")
        }
        kind = FIRST_LAYERS.get(tuple(weights["0.weight"].shape)) if "0.weight" in weights else None
        if kind is None:
            raise UserError(f"{path}: no weights for LPIPS; --lpips takes torchvision's state dict of alexnet or vgg16")
        network = _LPIPS(net=kind, pnet_rand=True)  # without pnet_rand it would download a backbone
        # Its slices keep the numbers of torchvision's layers: slice2.3.weight is features.3.weight.
        backbone = torch.nn.ModuleDict(
            {number: layer for part in network.net.children() for number, layer in part.named_children()}
        )
        load_weights(backbone, weights, path)
        self.network = network.to(device).eval()
        self.device = torch.device(device)
        self.kind = kind

    def __call__(self, first: Tensor, second: Tensor) -> Floats:
        """Two batches [N, 3, H, W], uint8 or float in [-1, 1] => distance per image [N], at least 0; 0 where equal."""
        return in_batches(self.compare, first, second)

    @torch.no_grad()
    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        one, other = (enlarge(images.to(self.device)) for images in (first, second))
        return torch.as_tensor(self.network(one, other)).reshape(len(first)).cpu()


def enlarge(images: Tensor) -> Tensor:
    """At least `SMALLEST` pixels a side."""
    if min(images.shape[2:]) >= SMALLEST:
        return images
    return F.interpolate(images, (SMALLEST, SMALLEST), mode="bilinear", align_corners=False)
