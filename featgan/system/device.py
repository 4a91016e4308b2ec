"""Whether the networks run in bf16 on a device."""

import torch


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Return whether the networks run in bf16, for a device and a value of `training.precision`."""
    return precision == "bf16" or (precision == "auto" and has_fast_bf16(device))


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether the device supports bf16 in hardware; emulated bf16 is slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
