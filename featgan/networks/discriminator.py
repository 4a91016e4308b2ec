"""The discriminator D(x) of StarGAN (Choi et al. 2018): realness of patches, and an estimate of the condition."""

from typing import NamedTuple

from torch import Tensor, nn


class Judgement(NamedTuple):
    """What the discriminator says of images."""

    logits: Tensor  # [N, 1, h, w], realness of patches (`src` in the paper)
    condition: Tensor  # [N, C], estimated condition (`cls`)
    outputs: Tensor | None  # [N, O], the box's outputs read off the estimated condition


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
            layers += [nn.Conv2d(width, wider, 4, 2, 1), nn.LeakyReLU(0.01)]
            width = wider
        self.trunk = nn.Sequential(*layers)
        self.to_logits = nn.Conv2d(width, 1, 3, 1, 1, bias=False)
        self.to_condition = nn.Conv2d(width, condition_dim, image_size >> num_layers, bias=False)
        self.to_outputs = nn.Linear(condition_dim, output_dim) if output_dim else None
        self.embedding = nn.Linear(projection_dim, width, bias=False) if projection_dim else None

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Judgement:
        activations = self.trunk(images)
        estimate = self.to_condition(activations).flatten(1)
        outputs = self.to_outputs(estimate).float() if self.to_outputs is not None else None
        logits = self.to_logits(activations).float()
        if self.embedding is not None:
            agreement = (activations.float().mean((2, 3)) * self.embedding(condition).float()).sum(1)
            logits = logits + agreement[:, None, None, None]
        return Judgement(logits, estimate.float(), outputs)
