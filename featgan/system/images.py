"""Conversions between stored images (uint8) and network inputs (float in [-1, 1]), and to fp32."""

import torch
from torch import Tensor


def to_float(images: Tensor) -> Tensor:
    """Convert uint8 images [N, 3, H, W] to float32 in [-1, 1]."""
    return images.to(torch.float32).div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Convert floats in [-1, 1] of any shape to uint8, rounded and clamped."""
    return images.detach().float().add(1).mul(127.5).round_().clamp_(0, 255).to(torch.uint8)


def to_fp32(values: Tensor) -> Tensor:
    """Convert half-precision tensors to fp32, for accurate sums; return other tensors unchanged."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
