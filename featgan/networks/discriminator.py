"""The discriminator D(x) of StarGAN (Choi et al. 2018): realness of patches, and an estimate of the condition."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featgan.system.images import single

SLOPE = 0.01
"""Of LeakyReLU below zero."""


SMALL = 3
"""Up to which height and width of its result a convolution is one matrix product."""


class Judgement(NamedTuple):
    """What the discriminator says of images."""

    logits: Tensor  # [N, 1, h, w], realness of patches (`src` in the paper)
    condition: Tensor  # [N, C], estimated condition (`cls`)
    outputs: Tensor | None  # [N, O], the box's outputs read off the estimated condition


class HalvingConv(nn.Conv2d):
    """A 4x4 convolution of stride 2, padded by one: [N, dim_in, H, W] => [N, dim_out, H // 2, W // 2].

    Where the result has a few pixels only, convolution routines spend most of their time on rearranging the weights
    (33 million of them in the last layer at 112 px); there it is a matrix product of the patches on the CPU.
    """

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__(dim_in, dim_out, 4, 2, 1)

    def forward(self, activations: Tensor) -> Tensor:
        height, width = (size // 2 for size in activations.shape[2:])
        if max(height, width) > SMALL or activations.device.type != "cpu":
            return super().forward(activations)
        patches = F.unfold(activations, 4, padding=1, stride=2).transpose(1, 2)
        return F.linear(patches, self.weight.flatten(1), self.bias).transpose(1, 2).unflatten(2, (height, width))

    def pull_back(self, gradient: Tensor, size: int) -> Tensor:
        """The derivative by the input, [N, dim_in, size, size], from that by the result."""
        halved = gradient.shape[-1]
        if halved > SMALL or gradient.device.type != "cpu":
            return F.conv_transpose2d(gradient, self.weight, None, 2, 1, size - 2 * halved)
        patches = F.linear(gradient.flatten(2).transpose(1, 2), self.weight.flatten(1).t()).transpose(1, 2)
        return F.fold(patches, (size, size), 4, padding=1, stride=2)


class Discriminator(nn.Module):
    """Stride-2 convolutions with LeakyReLU and no norm, and two heads.

    Images [N, 3, H, W] with H = W = `image_size` of at least 2 ** `num_layers`, else ValueError. Channels double from
    `dim` up to `max_dim`. With `output_dim` a linear layer reads the box's outputs off the estimated condition. With
    `projection` the embedded condition's inner product with the pooled activations is added to the patch map
    (Miyato & Koyama 2018); then the images' condition [N, P], P = `projection_dim`, must be given.
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
        if image_size < 2**num_layers:
            most = image_size.bit_length() - 1
            raise ValueError(
                f"image size {image_size}: {num_layers} halvings need at least {2**num_layers} pixels; "
                f"use larger images or discriminator.num_layers up to {most}"
            )
        layers: list[nn.Module] = []
        width = 3
        for depth in range(num_layers):
            wider = min(dim * 2**depth, max_dim)
            layers += [HalvingConv(width, wider), nn.LeakyReLU(SLOPE, inplace=True)]
            width = wider
        self.trunk = nn.Sequential(*layers)
        self.to_logits = nn.Conv2d(width, 1, 3, 1, 1, bias=False)
        self.to_condition = nn.Conv2d(width, condition_dim, image_size >> num_layers, bias=False)
        self.to_outputs = nn.Linear(condition_dim, output_dim) if output_dim else None
        self.embedding = nn.Linear(projection_dim, width, bias=False) if projection_dim else None

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Judgement:
        return self.judge(self.trunk(images), condition)

    def judge(self, activations: Tensor, condition: Tensor | None) -> Judgement:
        """What the heads say of the trunk's activations."""
        estimate = self.to_condition(activations).flatten(1)
        outputs = single(self.to_outputs(estimate)) if self.to_outputs is not None else None
        logits = single(self.to_logits(activations))
        if self.embedding is not None:
            agreement = (single(activations).mean((2, 3)) * single(self.embedding(condition))).sum(1)
            logits = logits + agreement[:, None, None, None]
        return Judgement(logits, single(estimate), outputs)

    def input_gradient(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """d sum D(x) / dx, of the patch map: [N, 3, H, W] as the images, differentiable in the weights.

        D is convolutions and LeakyReLU, whose slopes are constant around x. So the derivative is written out as
        transposed convolutions, and a penalty on it has an ordinary, first-order backward pass.
        """
        rising = self.rising(images)
        gradient = F.conv_transpose2d(
            images.new_ones(len(images), 1, *rising[-1].shape[2:]), self.to_logits.weight, padding=1
        )
        if self.embedding is not None:
            # The agreement is a mean over places, and added to the logit of every place.
            gradient = gradient + self.embedding(condition)[:, :, None, None]
        sizes = [images.shape[-1], *(each.shape[-1] for each in rising[:-1])]
        convolutions = [each for each in self.trunk if isinstance(each, HalvingConv)]
        for convolution, positive, size in reversed(list(zip(convolutions, rising, sizes, strict=True))):
            gradient = convolution.pull_back(torch.where(positive, gradient, SLOPE * gradient), size)
        return gradient

    def rising(self, images: Tensor) -> list[Tensor]:
        """Which units of each layer are positive, so that their slope is 1."""
        found, activations = [], images
        for convolution, relu in zip(self.trunk[::2], self.trunk[1::2], strict=True):
            # Cut layer by layer, not by no_grad: autocast would keep half-precision weights without their gradient.
            activations = relu(convolution(activations.detach()))
            found.append(activations.detach() > 0)
        return found
