"""Augmentation of the training images of a classifier; it does not change the expression."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_ROTATION = math.radians(10)
MAX_SCALING = 0.1
MAX_SHIFT = 0.12
"""Maximum translation, in half image widths."""
MAX_CONTRAST = 0.2
MAX_BRIGHTNESS = 0.15
"""Maximum brightness change, in half the range from black to white."""


def augment_images(images: Tensor, generator: torch.Generator) -> Tensor:
    """Augment images, float [N, 3, H, W] in [-1, 1]: random flip, rotation, scale, translation, contrast, brightness.

    An image is flipped horizontally with probability 1/2.
    """
    count = len(images)

    def sample_uniform(largest: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * largest

    flip_sign = 1 - 2 * torch.randint(0, 2, (count,), generator=generator)
    angle, scale = sample_uniform(MAX_ROTATION), 1 + sample_uniform(MAX_SCALING)
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    entries = [
        flip_sign * cosine,
        -sine,
        sample_uniform(MAX_SHIFT),
        flip_sign * sine,
        cosine,
        sample_uniform(MAX_SHIFT),
    ]
    matrices = torch.stack(entries, 1).reshape(count, 2, 3).to(images.device)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    warped = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    contrast = 1 + sample_uniform(MAX_CONTRAST)[:, None, None, None].to(images.device)
    brightness = sample_uniform(MAX_BRIGHTNESS)[:, None, None, None].to(images.device)
    return (warped * contrast + brightness).clamp_(-1, 1)
