"""3x3 convolutions with a quarter of the products, for fp32 on CPUs (Winograd 1980; Lavin & Gray 2016, F(4x4, 3x3)).

A convolution of 4x4 results is a product of polynomials, done at points (0, 1, -1, 2, -2, infinity) in each direction:
36 products in place of 144, all channels of one point a matrix product. The transforms to the points and back are small
matrix products as well.
"""

from functools import cache

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

TILE, PATCH = 4, 6
"""Pixels a side of a tile of results, and of the patch that they are computed from."""

FEWEST_TILES, FEWEST_CHANNELS = 96, 256
"""From where on a CPU saves more by fewer products than the transforms cost: at 128 channels both take as long."""

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
    """A 3x3 convolution of stride 1, padded by one: [N, dim_in, H, W] => [N, dim_out, H, W]."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__(dim_in, dim_out, 3, 1, 1, bias=False)

    def forward(self, activations: Tensor) -> Tensor:
        return WinogradConv.apply(activations, self.weight) if self.saves(activations) else super().forward(activations)

    def saves(self, activations: Tensor) -> bool:
        """Whether the tiles are cheaper. In bf16 the points' differences would lose what is left of the digits."""
        count, _, height, width = activations.shape
        return (
            activations.device.type == "cpu"
            and activations.dtype == self.weight.dtype
            and activations.dtype in (torch.float32, torch.float64)
            and not torch.is_autocast_enabled("cpu")
            and height % TILE == width % TILE == 0
            and count * (height // TILE) * (width // TILE) >= FEWEST_TILES
            and min(self.in_channels, self.out_channels) >= FEWEST_CHANNELS
        )


class WinogradConv(torch.autograd.Function):
    """Activations [N, C, H, W] and weights [O, C, 3, 3] => [N, O, H, W]; both derivatives go by the points too."""

    @staticmethod
    def forward(ctx: FunctionCtx, activations: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(activations, weight)
        return convolve(activations, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        activations, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        by_activations, by_weight = ctx.needs_input_grad  # type: ignore[attr-defined]
        return (
            convolve(gradient, weight.flip(2, 3).transpose(0, 1)) if by_activations else None,
            weight_gradient(activations, gradient) if by_weight else None,
        )


def convolve(activations: Tensor, weight: Tensor) -> Tensor:
    """The convolution: to the points, a matrix product at each, and back."""
    count, _, height, width = activations.shape
    points = torch.bmm(patches_at_points(activations), weight_at_points(weight))  # [36, tiles, O]
    results = plane(FROM_POINTS, points.dtype) @ points.flatten(1)
    tiles = results.view(TILE, TILE, count, height // TILE, width // TILE, -1)
    # A single tile's reshape is a view whose strides torch's batch norm takes for another layout in its derivative.
    return tiles.permute(2, 5, 3, 0, 4, 1).reshape(count, -1, height, width).contiguous()


def weight_gradient(activations: Tensor, gradient: Tensor) -> Tensor:
    """The transpose of `convolve` in its weights: [N, C, H, W] and [N, O, H, W] => [O, C, 3, 3]."""
    count, width_out, height, width = gradient.shape
    tiles = gradient.view(count, width_out, height // TILE, TILE, width // TILE, TILE).permute(3, 5, 0, 2, 4, 1)
    tiles = tiles.reshape(TILE * TILE, -1)
    points = (plane(FROM_POINTS, gradient.dtype).t() @ tiles).view(PATCH * PATCH, -1, width_out)
    products = torch.bmm(patches_at_points(activations).transpose(1, 2), points)  # [36, C, O]
    weights = plane(WEIGHT_TO_POINTS, gradient.dtype).t() @ products.flatten(1)
    return weights.view(3, 3, -1, width_out).permute(3, 2, 0, 1)


def patches_at_points(activations: Tensor) -> Tensor:
    """The values of overlapping patches at the points: [N, C, H, W] => [36, tiles, C]."""
    channels = activations.shape[1]
    padded = F.pad(activations.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    patches = padded.unfold(1, PATCH, TILE).unfold(2, PATCH, TILE).permute(4, 5, 0, 1, 2, 3)
    return (plane(TO_POINTS, activations.dtype) @ patches.reshape(PATCH * PATCH, -1)).view(PATCH**2, -1, channels)


def weight_at_points(weight: Tensor) -> Tensor:
    """[O, C, 3, 3] => [36, C, O]."""
    width_out, channels = weight.shape[:2]
    flat = weight.permute(2, 3, 1, 0).reshape(9, -1)
    return (plane(WEIGHT_TO_POINTS, weight.dtype) @ flat).view(PATCH * PATCH, channels, width_out)


@cache
def plane(line: tuple[tuple[float, ...], ...], dtype: torch.dtype) -> Tensor:
    """A transform of rows and columns at once, from that of a row."""
    matrix = torch.tensor(line, dtype=torch.float64)
    return torch.kron(matrix, matrix).to(dtype)
