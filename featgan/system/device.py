"""The precision of the networks on a device, and the number of threads on the CPU."""

import os

import torch

from featgan.system.resources import count_cores

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables with the number of threads; if one is set, the user's or the launcher's value is kept."""


def limit_torch_threads() -> None:
    """Use at most as many threads as this process has cores. The number is never raised.

    By default, torch uses all cores of the machine in each process, even if the container or the job has a quota.
    """
    if not any(os.environ.get(name) for name in THREAD_VARIABLES) and count_cores() < torch.get_num_threads():
        torch.set_num_threads(count_cores())


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Return whether the networks run in bf16, for a device and a value of `training.precision`."""
    return precision == "bf16" or (precision == "auto" and has_fast_bf16(device))


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether the device supports bf16 in hardware; emulated bf16 is slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
