"""How the condition enters the generator: constant planes, one tiled plane, or AdaIN (adaptive instance norm).

`condition` [N, P] is the condition input, and `condition_dim` is its width P (see featgan/data/conditions.py).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featgan.system.images import to_fp32

MIN_REPEATED_DIM = 16
"""`tile_layout` enlarges conditions narrower than this to blocks, and repeats wider ones as a small patch."""


def concat_planes(images: Tensor, condition: Tensor) -> Tensor:
    """Append each condition value as a constant plane (StarGAN, Choi et al. 2018).

    [N, 3, H, W], [N, P] => [N, 3 + P, H, W].
    """
    planes = condition[:, :, None, None].expand(-1, -1, *images.shape[2:])
    return torch.cat([images, planes.to(images.dtype)], 1)


def concat_convolution(images: Tensor, condition: Tensor, weight: Tensor) -> Tensor:
    """Convolve `concat_planes(images, condition)` with `weight` [D, 3 + P, k, k], zero-padded, without the planes.

    The convolution of a constant plane is constant except within k // 2 pixels of the border. So this function
    convolves k x k pixels and repeats the middle of the result. It also subtracts the value of the middle, one constant
    per map. The instance norm that follows removes such a constant anyway, but in bf16 digits of the image would be
    lost with it. [N, 3, H, W], [N, P] => [N, D, H, W].
    """
    kernel = weight.shape[-1]
    if min(images.shape[2:]) < kernel:
        interior_response = F.linear(condition, weight[:, 3:].sum((2, 3)))[:, :, None, None]
        return F.conv2d(concat_planes(images, condition), weight, padding=kernel // 2) - interior_response
    image_response = F.conv2d(images, weight[:, :3], padding=kernel // 2)
    plane = condition[:, :, None, None].expand(-1, -1, kernel, kernel)
    plane_response = F.conv2d(plane, weight[:, 3:], padding=kernel // 2)
    plane_response = plane_response - plane_response[:, :, kernel // 2, kernel // 2, None, None]
    return image_response + repeat_middle(repeat_middle(plane_response, 2, images.shape[2]), 3, images.shape[3])


def repeat_middle(cells: Tensor, axis: int, size: int) -> Tensor:
    """Repeat the middle cell along an axis of odd length until the axis has `size` cells."""
    margin = cells.shape[axis] // 2
    first, middle, last = cells.split([margin, 1, margin], axis)
    repeated = [-1] * cells.dim()
    repeated[axis] = size - 2 * margin
    return torch.cat([first, middle.expand(repeated), last], axis)


def tile_layout(condition_dim: int, image_size: int) -> Tensor:
    """Return the index of the condition value at each pixel: [H, W] in 0..P, where P means zero (an unused cell).

    The patch is the most nearly square grid with at least P cells. 64 values form an 8 x 8 patch that is repeated over
    the image, and 2 values fill one half of the image each. The original implementation (2020) has these two layouts;
    this function generalizes them to any width and size.
    """
    rows = math.isqrt(condition_dim)
    columns = math.ceil(condition_dim / rows)
    y, x = torch.meshgrid(torch.arange(image_size), torch.arange(image_size), indexing="ij")
    if condition_dim < MIN_REPEATED_DIM:
        y, x = y * rows // image_size, x * columns // image_size
    return ((y % rows) * columns + x % columns).clamp_max(condition_dim)


def tile_plane(images: Tensor, condition: Tensor, layout: Tensor) -> Tensor:
    """Append one plane with all condition values, arranged by `tile_layout`: [N, 3, H, W], [N, P] => [N, 4, H, W]."""
    plane = F.pad(condition, (0, 1))[:, layout.flatten()].view(-1, 1, *layout.shape)
    return torch.cat([images, plane.to(images.dtype)], 1)


class MappingNetwork(nn.Module):
    """Two-layer perceptron from the condition input [N, P] to the style [N, S] used by all AdaIN layers."""

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


class AdaptiveInstanceNorm(nn.Module):
    """Instance norm with learned scale and shift; if `style_dim` > 0, followed by x (1 + gamma) + beta (AdaIN).

    A linear layer computes gamma and beta from the style. Its weights are initialized to zero, so that training starts
    from the unconditioned network. With `style_dim` 0, the layer is not adaptive and ignores the style: this is so in
    the encoder, and in the complete network unless `conditioning` is `adain`.
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
            gamma, beta = to_fp32(self.modulation(style)).chunk(2, 1)
            scale, shift = scale * (1 + gamma), shift * (1 + gamma) + beta
        return instance_norm(activations, scale, shift)


def instance_norm(activations: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Normalize each map [H, W] of [N, C, H, W] to mean 0 and variance 1, then apply `scale` and `shift` [N, C].

    It runs as batch norm of one image with N C maps, so that a separate scale and shift for each image is free.
    """
    maps = activations.reshape(1, -1, *activations.shape[2:])
    return F.batch_norm(maps, None, None, scale.flatten(), shift.flatten(), training=True).view_as(activations)
