"""How a condition vector enters the generator: constant planes, one tiled plane, or modulation of the norms."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRETCHED = 16
"""Fewer numbers than this are stretched over the image as blocks; more are repeated as a small patch."""


def concat_planes(images: Tensor, condition: Tensor) -> Tensor:
    """[N, 3, H, W] and [N, C] => [N, 3 + C, H, W]: each number as a constant plane (StarGAN, Choi et al. 2018)."""
    planes = condition[:, :, None, None].expand(-1, -1, *images.shape[2:])
    return torch.cat([images, planes.to(images.dtype)], 1)


def tile_layout(condition_dim: int, image_size: int) -> Tensor:
    """Which number each pixel shows: indices [H, W] in 0..C, where C stands for zero (empty cells of the patch).

    The patch is the squarest grid of C cells: 64 numbers are an 8 x 8 patch, repeated over the image; 2 numbers are
    two half-planes. This is the ancestor's layout for these two, continued to any width and size.
    """
    rows = math.isqrt(condition_dim)
    columns = math.ceil(condition_dim / rows)
    y, x = torch.meshgrid(torch.arange(image_size), torch.arange(image_size), indexing="ij")
    if condition_dim < STRETCHED:
        y, x = y * rows // image_size, x * columns // image_size
    return ((y % rows) * columns + x % columns).clamp_max(condition_dim)


def tile_plane(images: Tensor, condition: Tensor, layout: Tensor) -> Tensor:
    """[N, 3, H, W] and [N, C] => [N, 4, H, W]: all numbers in one plane, placed by `tile_layout`."""
    plane = F.pad(condition, (0, 1))[:, layout.flatten()].view(-1, 1, *layout.shape)
    return torch.cat([images, plane.to(images.dtype)], 1)


class Mapping(nn.Module):
    """Two-layer perceptron from the condition [N, C] to the style [N, S] that all norms read."""

    def __init__(self, condition_dim: int, style_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(condition_dim, style_dim),
            nn.LeakyReLU(0.2),
            nn.Linear(style_dim, style_dim),
            nn.LeakyReLU(0.2),
        )

    def forward(self, condition: Tensor) -> Tensor:
        style: Tensor = self.layers(condition)
        return style


class Norm(nn.Module):
    """Instance norm with learned scale and shift; with a style, times (1 + gamma) plus beta read off it (AdaIN).

    The style's layer starts at zero, so that training starts from the unconditioned network.
    """

    def __init__(self, dim: int, style_dim: int = 0) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(dim, affine=True)
        self.modulation = nn.Linear(style_dim, 2 * dim) if style_dim else None
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, activations: Tensor, style: Tensor | None) -> Tensor:
        normalized: Tensor = self.norm(activations)
        if self.modulation is None:
            return normalized
        gamma, beta = self.modulation(style)[:, :, None, None].chunk(2, 1)
        return normalized * (1 + gamma) + beta
