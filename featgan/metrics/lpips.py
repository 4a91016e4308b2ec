"""LPIPS (Zhang et al. 2018), a perceptual distance between images, from weights that the user provides."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.image.lpips import _LPIPS

from featgan.blackbox.weights import load_state_dict, read_weights
from featgan.errors import UserError
from featgan.metrics.bootstrap import Floats
from featgan.metrics.preservation import compare_in_batches

MIN_SIDE = 64
"""Minimum width and height; smaller images are enlarged, because LPIPS was fitted on patches of this size."""

Backbone = Literal["alex", "vgg"]

BACKBONE_BY_FIRST_LAYER: dict[tuple[int, ...], Backbone] = {(64, 3, 11, 11): "alex", (64, 3, 3, 3): "vgg"}
"""Shape of torchvision's `features.0.weight` => the network that has it."""


class Lpips:
    """The LPIPS network of torchmetrics, with the linear heads of that package and the user's backbone."""

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        """Raises UserError unless `path` contains torchvision's weights of alexnet or vgg16. Nothing is downloaded."""
        weights = {
            name.removeprefix("features."): tensor
            for name, tensor in read_weights(path).items()
            if name.startswith("features.")
        }
        backbone_name = BACKBONE_BY_FIRST_LAYER.get(tuple(weights["0.weight"].shape)) if "0.weight" in weights else None
        if backbone_name is None:
            raise UserError(
                f"{path}: not weights for LPIPS; --lpips needs torchvision's state dict of alexnet or vgg16"
            )
        network = _LPIPS(net=backbone_name, pnet_rand=True)  # without pnet_rand it would download a backbone
        # Its slices keep torchvision's layer numbers: slice2.3.weight is features.3.weight.
        backbone = torch.nn.ModuleDict(
            {
                number: layer
                for network_slice in network.net.children()
                for number, layer in network_slice.named_children()
            }
        )
        load_state_dict(backbone, weights, path)
        self.network = network.to(device).eval()
        self.device = torch.device(device)
        self.backbone_name = backbone_name

    def __call__(self, first: Tensor, second: Tensor) -> Floats:
        """Two batches [N, 3, H, W], uint8 or float in [-1, 1] => distance per image [N], at least 0; 0 if equal."""
        return compare_in_batches(self.compare, first, second)

    @torch.no_grad()
    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        """Compare one batch: two [N, 3, H, W] => [N]."""
        one, other = (enlarge_images(images.to(self.device)) for images in (first, second))
        return torch.as_tensor(self.network(one, other)).reshape(len(first)).cpu()


def enlarge_images(images: Tensor) -> Tensor:
    """Enlarge images to at least MIN_SIDE pixels in width and height."""
    if min(images.shape[2:]) >= MIN_SIDE:
        return images
    return F.interpolate(images, (MIN_SIDE, MIN_SIDE), mode="bilinear", align_corners=False)
