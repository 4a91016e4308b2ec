"""Images between their two forms, uint8 as stored and float in [-1, 1] as the networks see them; and precisions."""

import torch
from torch import Tensor


def to_float(images: Tensor) -> Tensor:
    """uint8 [N, 3, H, W] => float32 in [-1, 1], same shape."""
    return images.to(torch.float32).div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """float in [-1, 1], any shape => uint8, rounded and clamped."""
    return images.detach().float().add(1).mul(127.5).round_().clamp_(0, 255).to(torch.uint8)


def single(values: Tensor) -> Tensor:
    """Half-precision values as fp32, for sums over many; others as they are."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
