"""How a condition vector enters the generator: constant planes, one tiled plane, or modulation of the norms."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featgan.system.images import single

STRETCHED = 16
"""Fewer numbers than this are stretched over the image as blocks; more are repeated as a small patch."""


def concat_planes(images: Tensor, condition: Tensor) -> Tensor:
    """[N, 3, H, W] and [N, C] => [N, 3 + C, H, W]: each number as a constant plane (StarGAN, Choi et al. 2018)."""
    planes = condition[:, :, None, None].expand(-1, -1, *images.shape[2:])
    return torch.cat([images, planes.to(images.dtype)], 1)


def concat_convolution(images: Tensor, condition: Tensor, weight: Tensor) -> Tensor:
    """The convolution of `concat_planes(images, condition)` by `weight` [D, 3 + C, k, k], zero-padded, without planes.

    A constant plane stays constant under a convolution but within k // 2 pixels of the border, so a plane of k x k
    pixels shows every value that one of any size takes: its middle is repeated. That value is left out, one number for
    each map, which the instance norm that follows would take away again, in bf16 with digits of the image.
    [N, 3, H, W], [N, C] => [N, D, H, W].
    """
    kernel = weight.shape[-1]
    if min(images.shape[2:]) < kernel:
        values = F.linear(condition, weight[:, 3:].sum((2, 3)))[:, :, None, None]
        return F.conv2d(concat_planes(images, condition), weight, padding=kernel // 2) - values
    seen = F.conv2d(images, weight[:, :3], padding=kernel // 2)
    plane = condition[:, :, None, None].expand(-1, -1, kernel, kernel)
    cases = F.conv2d(plane, weight[:, 3:], padding=kernel // 2)
    cases = cases - cases[:, :, kernel // 2, kernel // 2, None, None]
    return seen + stretch(stretch(cases, 2, images.shape[2]), 3, images.shape[3])


def stretch(cells: Tensor, axis: int, size: int) -> Tensor:
    """The middle one of an odd number of cells along an axis repeated, until there are `size`."""
    margin = cells.shape[axis] // 2
    first, middle, last = cells.split([margin, 1, margin], axis)
    repeated = [-1] * cells.dim()
    repeated[axis] = size - 2 * margin
    return torch.cat([first, middle.expand(repeated), last], axis)


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
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.modulation = nn.Linear(style_dim, 2 * dim) if style_dim else None
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, activations: Tensor, style: Tensor | None) -> Tensor:
        scale, shift = self.weight.expand(len(activations), -1), self.bias.expand(len(activations), -1)
        if self.modulation is not None:
            gamma, beta = single(self.modulation(style)).chunk(2, 1)
            scale, shift = scale * (1 + gamma), shift * (1 + gamma) + beta
        return instance_norm(activations, scale, shift)


def instance_norm(activations: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Each map [H, W] of [N, C, H, W] to mean 0 and variance 1, then scaled and shifted by its own numbers [N, C].

    This is batch norm of one image with N C maps, so that a scale and shift for every image cost nothing.
    """
    maps = activations.reshape(1, -1, *activations.shape[2:])
    return F.batch_norm(maps, None, None, scale.flatten(), shift.flatten(), training=True).view_as(activations)
