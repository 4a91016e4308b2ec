"""Augmentation of what the discriminator sees, real and edited: DiffAugment (Zhao et al. 2020), without colour."""

import torch
from torch import Tensor
from torch.nn import functional as F

SHIFT = 8
"""Images are shifted by up to this part of their side."""

CUT = 2
"""A square of this part of their side is cut out."""


def augment(images: Tensor, places: Tensor) -> Tensor:
    """Each image [N, 3, H, W] shifted, and a square of it set to 0 (grey); `places` [N, 4] in [0, 1) says where to.

    Differentiable in the images. D cannot learn a small data set by heart, nor ask G for the shift: both kinds have it.
    """
    most = images.shape[-1] // SHIFT
    offsets = ((2 * most + 1) * places[:, :2]).long()
    sides = torch.arange(images.shape[-1], device=images.device)
    rows, columns = (sides + offsets[:, axis, None] for axis in (0, 1))
    numbers = torch.arange(len(images), device=images.device)[:, None, None]
    shifted = F.pad(images, [most] * 4)[numbers, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    centres = (images.shape[-1] * places[:, 2:]).floor()
    near_row, near_column = ((sides - centres[:, axis, None]).abs() < images.shape[-1] / CUT / 2 for axis in (0, 1))
    cut = near_row[:, None, :, None] & near_column[:, None, None, :]
    return shifted.masked_fill(cut, 0)
