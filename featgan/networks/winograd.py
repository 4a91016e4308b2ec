"""Winograd 3x3 convolution for fp32 on CPUs, with a quarter of the products (F(4x4, 3x3), Lavin & Gray 2016).

The convolution of a tile of 4x4 outputs is a product of polynomials, evaluated at the points 0, 1, -1, 2, -2 and
infinity in each direction. It needs 36 products instead of 144. Each point is a matrix product over the channels. The
transforms to the points and back are small matrix products too.
"""

from functools import cache

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

TILE_SIZE, PATCH_SIZE = 4, 6
"""Side of an output tile, and of the input patch that it depends on, in pixels."""

MIN_TILES, MIN_CHANNELS = 96, 256
"""Sizes from which the saved products outweigh the transforms on a CPU; at 128 channels, the times are equal."""

# The transforms B^T, G and A^T of Lavin & Gray 2016.
TO_POINTS = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
WEIGHT_TO_POINTS = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
FROM_POINTS = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


class Conv3x3(nn.Conv2d):
    """3x3 convolution with stride 1 and padding 1, by Winograd if faster: [N, dim_in, H, W] => [N, dim_out, H, W]."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__(dim_in, dim_out, 3, 1, 1, bias=False)

    def forward(self, activations: Tensor) -> Tensor:
        return (
            WinogradConv.apply(activations, self.weight)
            if self.is_winograd_faster(activations)
            else super().forward(activations)
        )

    def is_winograd_faster(self, activations: Tensor) -> bool:
        """Return whether the Winograd convolution is faster.

        It is never used in bf16, where the differences between the points would lose most of the precision.
        """
        count, _, height, width = activations.shape
        return (
            activations.device.type == "cpu"
            and activations.dtype == self.weight.dtype
            and activations.dtype in (torch.float32, torch.float64)
            and not torch.is_autocast_enabled("cpu")
            and height % TILE_SIZE == width % TILE_SIZE == 0
            and count * (height // TILE_SIZE) * (width // TILE_SIZE) >= MIN_TILES
            and min(self.in_channels, self.out_channels) >= MIN_CHANNELS
        )


class WinogradConv(torch.autograd.Function):
    """Winograd convolution with its gradients: activations [N, C, H, W], weights [O, C, 3, 3] => [N, O, H, W]."""

    @staticmethod
    def forward(ctx: FunctionCtx, activations: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(activations, weight)
        return winograd_conv2d(activations, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        activations, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        needs_activation_gradient, needs_weight_gradient = ctx.needs_input_grad  # type: ignore[attr-defined]
        return (
            winograd_conv2d(gradient, weight.flip(2, 3).transpose(0, 1)) if needs_activation_gradient else None,
            winograd_weight_gradient(activations, gradient) if needs_weight_gradient else None,
        )


def winograd_conv2d(activations: Tensor, weight: Tensor) -> Tensor:
    """Transform to the points, multiply at each point, and transform back: [N, C, H, W] => [N, O, H, W]."""
    count, _, height, width = activations.shape
    points = torch.bmm(patches_at_points(activations), weight_at_points(weight))  # [36, tiles, O]
    results = separable_transform(FROM_POINTS, points.dtype) @ points.flatten(1)
    tiles = results.view(TILE_SIZE, TILE_SIZE, count, height // TILE_SIZE, width // TILE_SIZE, -1)
    # With a single tile, reshape returns a view with strides that batch norm takes for another layout in its backward.
    return tiles.permute(2, 5, 3, 0, 4, 1).reshape(count, -1, height, width).contiguous()


def winograd_weight_gradient(activations: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient of `winograd_conv2d` with respect to the weights: [O, C, 3, 3]."""
    count, out_channels, height, width = gradient.shape
    tiles = gradient.view(count, out_channels, height // TILE_SIZE, TILE_SIZE, width // TILE_SIZE, TILE_SIZE).permute(
        3, 5, 0, 2, 4, 1
    )
    tiles = tiles.reshape(TILE_SIZE * TILE_SIZE, -1)
    points = (separable_transform(FROM_POINTS, gradient.dtype).t() @ tiles).view(
        PATCH_SIZE * PATCH_SIZE, -1, out_channels
    )
    products = torch.bmm(patches_at_points(activations).transpose(1, 2), points)  # [36, C, O]
    weights = separable_transform(WEIGHT_TO_POINTS, gradient.dtype).t() @ products.flatten(1)
    return weights.view(3, 3, -1, out_channels).permute(3, 2, 0, 1)


def patches_at_points(activations: Tensor) -> Tensor:
    """Evaluate overlapping input patches at the points: [N, C, H, W] => [36, tiles, C]."""
    channels = activations.shape[1]
    padded = F.pad(activations.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    patches = padded.unfold(1, PATCH_SIZE, TILE_SIZE).unfold(2, PATCH_SIZE, TILE_SIZE).permute(4, 5, 0, 1, 2, 3)
    return (separable_transform(TO_POINTS, activations.dtype) @ patches.reshape(PATCH_SIZE * PATCH_SIZE, -1)).view(
        PATCH_SIZE**2, -1, channels
    )


def weight_at_points(weight: Tensor) -> Tensor:
    """Evaluate the weights at the points: [O, C, 3, 3] => [36, C, O]."""
    out_channels, channels = weight.shape[:2]
    flat = weight.permute(2, 3, 1, 0).reshape(9, -1)
    return (separable_transform(WEIGHT_TO_POINTS, weight.dtype) @ flat).view(
        PATCH_SIZE * PATCH_SIZE, channels, out_channels
    )


@cache
def separable_transform(row_transform: tuple[tuple[float, ...], ...], dtype: torch.dtype) -> Tensor:
    """Return the matrix that applies `row_transform` to rows and columns at once."""
    matrix = torch.tensor(row_transform, dtype=torch.float64)
    return torch.kron(matrix, matrix).to(dtype)
