"""The discriminator of StarGAN (Choi et al. 2018): logits of image patches and an estimate of the condition.

It computes D(x), or D(x, c) with `projection`.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featgan.system.image_sizes import explain_discriminator_size
from featgan.system.images import to_fp32

LEAKY_RELU_SLOPE = 0.01
"""Slope of LeakyReLU for negative inputs."""


MAX_MATMUL_SIZE = 3
"""Output height and width up to which `DownsampleConv` runs as one matrix product."""


class DiscriminatorOutput(NamedTuple):
    """Outputs of the discriminator."""

    logits: Tensor  # [N, 1, h, w], real (high) or generated (low), for each patch; D_src in the paper
    condition_estimate: Tensor  # [N, C], estimated condition of all data sets; D_cls in the paper
    output_estimate: Tensor | None  # [N, O], estimated classifier outputs, computed from the estimated condition


class DownsampleConv(nn.Conv2d):
    """4x4 convolution with stride 2 and padding 1: [N, dim_in, H, W] => [N, dim_out, H // 2, W // 2].

    If the output has few pixels, CPU convolution routines spend most of their time rearranging the weights (33 million
    in the last layer at 112 px). On the CPU, such a layer therefore runs as a matrix product of image patches.
    """

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__(dim_in, dim_out, 4, 2, 1)

    def forward(self, activations: Tensor) -> Tensor:
        height, width = (size // 2 for size in activations.shape[2:])
        if max(height, width) > MAX_MATMUL_SIZE or activations.device.type != "cpu":
            return super().forward(activations)
        patches = F.unfold(activations, 4, padding=1, stride=2).transpose(1, 2)
        return F.linear(patches, self.weight.flatten(1), self.bias).transpose(1, 2).unflatten(2, (height, width))

    def backpropagate(self, gradient: Tensor, input_size: int) -> Tensor:
        """Backpropagate a gradient from the output of the layer to its input, [N, dim_in, size, size]."""
        output_size = gradient.shape[-1]
        if output_size > MAX_MATMUL_SIZE or gradient.device.type != "cpu":
            return F.conv_transpose2d(gradient, self.weight, None, 2, 1, input_size - 2 * output_size)
        patches = F.linear(gradient.flatten(2).transpose(1, 2), self.weight.flatten(1).t()).transpose(1, 2)
        return F.fold(patches, (input_size, input_size), 4, padding=1, stride=2)


class Discriminator(nn.Module):
    """Stride-2 convolutions with LeakyReLU and without normalization, and two heads.

    Takes images [N, 3, H, W] with H = W = `image_size`. The number of channels doubles in each layer, from `dim` up to
    `max_dim`. If `output_dim` > 0, a linear layer computes the classifier outputs from the estimated condition. If
    `projection_dim` > 0, the inner product of a linear map of the condition [N, projection_dim] with the pooled
    activations is added to the patch logits (projection discriminator, Miyato & Koyama 2018).

    Raises ValueError if `image_size` is smaller than 2 ** `num_layers`.
    """

    def __init__(
        self,
        image_size: int,
        condition_dim: int,
        dim: int = 64,
        num_layers: int = 6,
        max_dim: int = 8192,
        output_dim: int = 0,
        projection_dim: int = 0,
    ) -> None:
        super().__init__()
        if problem := explain_discriminator_size(image_size, num_layers):
            raise ValueError(problem)
        layers: list[nn.Module] = []
        channels = 3
        for depth in range(num_layers):
            next_channels = min(dim * 2**depth, max_dim)
            layers += [DownsampleConv(channels, next_channels), nn.LeakyReLU(LEAKY_RELU_SLOPE, inplace=True)]
            channels = next_channels
        self.trunk = nn.Sequential(*layers)
        self.to_logits = nn.Conv2d(channels, 1, 3, 1, 1, bias=False)
        self.to_condition = nn.Conv2d(channels, condition_dim, image_size >> num_layers, bias=False)
        self.to_outputs = nn.Linear(condition_dim, output_dim) if output_dim else None
        self.embedding = nn.Linear(projection_dim, channels, bias=False) if projection_dim else None

    def forward(self, images: Tensor, condition: Tensor | None = None) -> DiscriminatorOutput:
        return self.apply_heads(self.trunk(images), condition)

    def apply_heads(self, activations: Tensor, condition: Tensor | None) -> DiscriminatorOutput:
        """Apply the heads to the activations of the trunk."""
        estimate = self.to_condition(activations).flatten(1)
        outputs = to_fp32(self.to_outputs(estimate)) if self.to_outputs is not None else None
        logits = to_fp32(self.to_logits(activations))
        if self.embedding is not None:
            projection = (to_fp32(activations).mean((2, 3)) * to_fp32(self.embedding(condition))).sum(1)
            logits = logits + projection[:, None, None, None]
        return DiscriminatorOutput(logits, to_fp32(estimate), outputs)

    def input_gradient(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return d sum D(x) / dx of the patch logits, [N, 3, H, W], differentiable with respect to the weights.

        D consists of convolutions and LeakyReLU, so it is linear in a neighborhood of x. The derivative is therefore
        written as transposed convolutions, and a penalty on it needs a first-order backward pass only.
        """
        active_masks = self.active_units(images)
        gradient = F.conv_transpose2d(
            images.new_ones(len(images), 1, *active_masks[-1].shape[2:]), self.to_logits.weight, padding=1
        )
        if self.embedding is not None:
            # The inner product is averaged over the positions and added to the logit of every position.
            gradient = gradient + self.embedding(condition)[:, :, None, None]
        sizes = [images.shape[-1], *(mask.shape[-1] for mask in active_masks[:-1])]
        convolutions = [layer for layer in self.trunk if isinstance(layer, DownsampleConv)]
        for convolution, is_active, size in reversed(list(zip(convolutions, active_masks, sizes, strict=True))):
            gradient = convolution.backpropagate(torch.where(is_active, gradient, LEAKY_RELU_SLOPE * gradient), size)
        return gradient

    def active_units(self, images: Tensor) -> list[Tensor]:
        """Return a mask of the positive units of each layer, where LeakyReLU has slope 1."""
        masks, activations = [], images
        for convolution, relu in zip(self.trunk[::2], self.trunk[1::2], strict=True):
            # Detach in each layer instead of using no_grad, where autocast would cache bf16 weights without a gradient.
            activations = relu(convolution(activations.detach()))
            masks.append(activations.detach() > 0)
        return masks
