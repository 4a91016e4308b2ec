"""Small changes of the images a box is fitted on, that leave the expression as it is."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

LARGEST_ROTATION = math.radians(10)
LARGEST_SCALING = 0.1
LARGEST_SHIFT = 0.12
"""In half image widths."""
LARGEST_CONTRAST = 0.2
LARGEST_BRIGHTNESS = 0.15
"""In half the range from black to white."""


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """float [N, 3, H, W] in [-1, 1] => mirrored (every other one), turned, scaled, shifted, brighter or darker."""
    count = len(images)

    def uniform(largest: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * largest

    mirror = 1 - 2 * torch.randint(0, 2, (count,), generator=generator)
    angle, scale = uniform(LARGEST_ROTATION), 1 + uniform(LARGEST_SCALING)
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    rows = [mirror * cosine, -sine, uniform(LARGEST_SHIFT), mirror * sine, cosine, uniform(LARGEST_SHIFT)]
    maps = torch.stack(rows, 1).reshape(count, 2, 3).to(images.device)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    contrast = 1 + uniform(LARGEST_CONTRAST)[:, None, None, None].to(images.device)
    brightness = uniform(LARGEST_BRIGHTNESS)[:, None, None, None].to(images.device)
    return (moved * contrast + brightness).clamp_(-1, 1)
