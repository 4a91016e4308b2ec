"""Images between their two forms: uint8 as stored, float in [-1, 1] as the networks see them."""

import torch
from torch import Tensor


def to_float(images: Tensor) -> Tensor:
    """uint8 [N, 3, H, W] => float32 in [-1, 1], same shape."""
    return images.to(torch.float32).div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """float in [-1, 1], any shape => uint8, rounded and clamped."""
    return images.detach().float().add(1).mul(127.5).round_().clamp_(0, 255).to(torch.uint8)
