"""Exponential moving average (EMA) of the generator's weights (Karras et al. 2018; ramp-up of Karras et al. 2020)."""

import copy

import torch
from torch import Tensor, nn


class EMA:
    """A copy of a network whose weights are an EMA with a half-life in images.

    The half-life is at most a twentieth of the images seen, so that the initial weights are soon forgotten. A half-life
    of 0 turns the EMA off: `module` is then the network itself.
    """

    def __init__(self, network: nn.Module, half_life: int) -> None:
        self.half_life = half_life
        self.module = copy.deepcopy(network).requires_grad_(False) if half_life else network

    @torch.no_grad()
    def update(self, network: nn.Module, images_seen: int, new_images: int) -> None:
        """Update the average after `new_images` more images, of `images_seen` in total."""
        if not self.half_life:
            return
        half_life = min(self.half_life, max(images_seen / 20, 1e-8))
        decay = 0.5 ** (new_images / half_life)
        ema_parameters: list[Tensor] = list(self.module.parameters())
        torch._foreach_lerp_(ema_parameters, [value.detach() for value in network.parameters()], 1 - decay)
