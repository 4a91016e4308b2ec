"""The generator G(x, c) of StarGAN (Choi et al. 2018), for any condition width and image size."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from featgan.networks.conditioning import (
    AdaptiveInstanceNorm,
    MappingNetwork,
    concat_convolution,
    tile_layout,
    tile_plane,
)
from featgan.networks.winograd import Conv3x3
from featgan.system.image_sizes import explain_generator_size
from featgan.system.images import to_fp32

STYLE_DIM = 128
"""Width of the style vector, for `conditioning="adain"`."""

INITIAL_MASK_LOGIT = -1.5
"""Initial logit of the blend mask: the output is 82 % source at first, so training starts near the source image."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each followed by a norm, added to the input."""

    def __init__(self, dim: int, style_dim: int) -> None:
        super().__init__()
        self.conv1 = Conv3x3(dim, dim)
        self.norm1 = AdaptiveInstanceNorm(dim, style_dim)
        self.conv2 = Conv3x3(dim, dim)
        self.norm2 = AdaptiveInstanceNorm(dim, style_dim)

    def forward(self, activations: Tensor, style: Tensor | None) -> Tensor:
        hidden = F.relu(self.norm1(self.conv1(activations), style))
        return activations + self.norm2(self.conv2(hidden), style)


class UpsampleConv(nn.Conv2d):
    """Nearest-neighbor upsampling by 2, then a 3x3 convolution: [N, dim_in, H, W] => [N, dim_out, 2 H, 2 W].

    Several of the nine weights are applied to copies of the same input pixel. Their sums form a 4x4 transposed
    convolution with stride 2. It needs 16 products per input pixel instead of 36, and no upsampled activations.
    """

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__(dim_in, dim_out, 3, 1, 1, bias=False)

    def forward(self, activations: Tensor) -> Tensor:
        flipped = self.weight.flip(2, 3).transpose(0, 1)
        summed_kernel = sum(F.pad(flipped, (x, 1 - x, y, 1 - y)) for x in (0, 1) for y in (0, 1))
        return F.conv_transpose2d(activations, torch.as_tensor(summed_kernel), stride=2, padding=1)


def build_upsampler(dim_in: int, dim_out: int, upsampling: str) -> nn.Module:
    """Build an upsampling layer, [N, dim_in, H, W] => [N, dim_out, 2 H, 2 W]."""
    if upsampling == "transposed":
        return nn.ConvTranspose2d(dim_in, dim_out, 4, 2, 1, bias=False)
    return UpsampleConv(dim_in, dim_out)


class Generator(nn.Module):
    """Edits images [N, 3, H, W] in [-1, 1] to match a condition; H and W are `image_size`.

    `condition` [N, P] is the condition input, and `condition_dim` is its width P (see featgan/data/conditions.py).
    `conditioning` is `concat` (constant planes), `tile` (one plane) or `adain`. `output` is `image` (tanh of the last
    layer, as in StarGAN) or `masked_blend` (tanh pixels blended with the source image by a mask). `upsampling` is
    `transposed` (4x4 transposed convolutions, as in StarGAN) or `nearest` (nearest-neighbor upsampling and a 3x3
    convolution, which avoids checkerboard artifacts; Odena et al. 2016). `activation_checkpointing` recomputes the
    activations in the backward pass instead of storing them (Chen et al. 2016).

    Raises ValueError if `image_size` is not a multiple of 4.
    """

    def __init__(
        self,
        image_size: int,
        condition_dim: int,
        dim: int = 64,
        num_blocks: int = 6,
        conditioning: str = "concat",
        output: str = "image",
        upsampling: str = "transposed",
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if problem := explain_generator_size(image_size):
            raise ValueError(problem)
        self.conditioning = conditioning
        self.output = output
        self.activation_checkpointing = activation_checkpointing
        style_dim = STYLE_DIM if conditioning == "adain" else 0
        self.mapping = MappingNetwork(condition_dim, style_dim) if style_dim else None
        condition_channels = {"concat": condition_dim, "tile": 1, "adain": 0}[conditioning]
        if conditioning == "tile":
            self.register_buffer("layout", tile_layout(condition_dim, image_size), persistent=False)

        self.encoder = nn.ModuleList(
            [
                nn.Conv2d(3 + condition_channels, dim, 7, 1, 3, bias=False),
                nn.Conv2d(dim, 2 * dim, 4, 2, 1, bias=False),
                nn.Conv2d(2 * dim, 4 * dim, 4, 2, 1, bias=False),
            ]
        )
        self.encoder_norms = nn.ModuleList(
            [AdaptiveInstanceNorm(dim), AdaptiveInstanceNorm(2 * dim), AdaptiveInstanceNorm(4 * dim)]
        )
        self.blocks = nn.ModuleList([ResidualBlock(4 * dim, style_dim) for _ in range(num_blocks)])
        self.decoder = nn.ModuleList(
            [build_upsampler(4 * dim, 2 * dim, upsampling), build_upsampler(2 * dim, dim, upsampling)]
        )
        self.decoder_norms = nn.ModuleList(
            [AdaptiveInstanceNorm(2 * dim, style_dim), AdaptiveInstanceNorm(dim, style_dim)]
        )
        self.to_pixels = nn.Conv2d(dim, 3 + (output == "masked_blend"), 7, 1, 3, bias=output == "masked_blend")
        self.start_near_source()

    def start_near_source(self) -> None:
        """Initialize the blend mask so that the output is mostly the source image; other outputs keep their weights."""
        with torch.no_grad():
            if self.to_pixels.bias is not None:
                self.to_pixels.bias.zero_()
                self.to_pixels.bias[3] = INITIAL_MASK_LOGIT

    def forward(self, images: Tensor, condition: Tensor) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            # The layers use no random numbers, so no RNG state has to be preserved.
            edited: Tensor = checkpoint(
                self.forward_layers, images, condition, use_reentrant=False, preserve_rng_state=False
            )
            return edited
        return self.forward_layers(images, condition)

    def forward_layers(self, images: Tensor, condition: Tensor) -> Tensor:
        """Compute the edited images, layer by layer."""
        style = self.mapping(condition) if self.mapping is not None else None
        activations = F.relu(self.encoder_norms[0](self.apply_first_layer(images, condition), None))
        for conv, norm in zip(self.encoder[1:], self.encoder_norms[1:], strict=True):
            activations = F.relu(norm(conv(activations), None))
        for block in self.blocks:
            activations = block(activations, style)
        for conv, norm in zip(self.decoder, self.decoder_norms, strict=True):
            activations = F.relu(norm(conv(activations), style))
        return self.to_image(images, to_fp32(self.to_pixels(activations)))

    def apply_first_layer(self, images: Tensor, condition: Tensor) -> Tensor:
        """Apply the first convolution; with `concat` and `tile`, the condition enters here."""
        first_conv = self.encoder[0]
        if self.conditioning == "concat":
            return concat_convolution(images, condition, first_conv.get_parameter("weight"))
        if self.conditioning == "tile":
            images = tile_plane(images, condition, self.get_buffer("layout"))
        activations: Tensor = first_conv(images)
        return activations

    def to_image(self, images: Tensor, pixels: Tensor) -> Tensor:
        """Convert the last layer's values [N, 3 or 4, H, W] to edited images [N, 3, H, W]."""
        if self.output == "image":
            return pixels.tanh()
        mask = pixels[:, 3:].sigmoid()
        return images + mask * (pixels[:, :3].tanh() - images)
