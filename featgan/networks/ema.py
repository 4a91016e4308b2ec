"""The running average of the generator's weights (Karras et al. 2018; ramp-up as in Karras et al. 2020)."""

import copy

import torch
from torch import Tensor, nn


class Average:
    """A copy of a network whose weights follow with a half-life in images; 0 images means the network itself.

    The half-life is never longer than a twentieth of the images seen, so the average forgets its start.
    """

    def __init__(self, network: nn.Module, half_life: int) -> None:
        self.half_life = half_life
        self.network = copy.deepcopy(network).requires_grad_(False) if half_life else network

    @torch.no_grad()
    def update(self, network: nn.Module, images_seen: int, images_new: int) -> None:
        """Follow `network` after a step that showed `images_new` images."""
        if not self.half_life:
            return
        half_life = min(self.half_life, max(images_seen / 20, 1e-8))
        keep = 0.5 ** (images_new / half_life)
        averages: list[Tensor] = list(self.network.parameters())
        torch._foreach_lerp_(averages, [value.detach() for value in network.parameters()], 1 - keep)
