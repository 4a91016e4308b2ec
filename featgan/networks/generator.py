"""The generator G(x, c) of StarGAN (Choi et al. 2018), for a condition of any width at any image size."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from featgan.networks.conditioning import Mapping, Norm, concat_convolution, tile_layout, tile_plane
from featgan.networks.winograd import Conv3x3
from featgan.system.images import single

STYLE_DIM = 128
BLEND_START = -1.5
"""Initial logit of the blend mask: the source shows through by 82 %, so training starts near the source."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each normalised, added to the input."""

    def __init__(self, dim: int, style_dim: int) -> None:
        super().__init__()
        self.conv1 = Conv3x3(dim, dim)
        self.norm1 = Norm(dim, style_dim)
        self.conv2 = Conv3x3(dim, dim)
        self.norm2 = Norm(dim, style_dim)

    def forward(self, activations: Tensor, style: Tensor | None) -> Tensor:
        hidden = F.relu(self.norm1(self.conv1(activations), style))
        return activations + self.norm2(self.conv2(hidden), style)


class NearestConv(nn.Conv2d):
    """Every pixel repeated 2 x 2, then a 3x3 convolution: [N, dim_in, H, W] => [N, dim_out, 2 H, 2 W].

    Of the nine weights that meet an output pixel some fall on the same repeated pixel; added up beforehand they make a
    4x4 transposed convolution of stride 2: 16 products an input pixel in place of 36, and no enlarged activations.
    """

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__(dim_in, dim_out, 3, 1, 1, bias=False)

    def forward(self, activations: Tensor) -> Tensor:
        flipped = self.weight.flip(2, 3).transpose(0, 1)
        added = sum(F.pad(flipped, (x, 1 - x, y, 1 - y)) for x in (0, 1) for y in (0, 1))
        return F.conv_transpose2d(activations, torch.as_tensor(added), stride=2, padding=1)


def upsampler(dim_in: int, dim_out: int, upsampling: str) -> nn.Module:
    """Twice the resolution, [N, dim_in, H, W] => [N, dim_out, 2 H, 2 W]."""
    if upsampling == "transposed":
        return nn.ConvTranspose2d(dim_in, dim_out, 4, 2, 1, bias=False)
    return NearestConv(dim_in, dim_out)


class Generator(nn.Module):
    """Edits images [N, 3, H, W] in [-1, 1] until a classifier would see the condition [N, C] in them.

    `conditioning` is `concat`, `tile` or `modulation`. `output` is `image` (tanh of the last layer, as in StarGAN)
    or `blend` (tanh pixels mixed with the source by a mask).
    `upsampling` is `transposed` (4x4 transposed convolutions, as in StarGAN) or `nearest` (repeated pixels and a 3x3
    convolution, which leaves no checkerboard for the discriminator to be fooled with; Odena et al. 2016).
    H and W are `image_size`, a multiple of 4, else ValueError.
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
    ) -> None:
        super().__init__()
        if image_size % 4:
            raise ValueError(f"image size {image_size}: the generator halves it twice, so it must be a multiple of 4")
        self.conditioning = conditioning
        self.output = output
        self.recomputes = False
        """Whether activations are made again for the backward pass, in place of kept (Chen et al. 2016)."""
        style_dim = STYLE_DIM if conditioning == "modulation" else 0
        self.mapping = Mapping(condition_dim, style_dim) if style_dim else None
        extra = {"concat": condition_dim, "tile": 1, "modulation": 0}[conditioning]
        if conditioning == "tile":
            self.register_buffer("layout", tile_layout(condition_dim, image_size), persistent=False)

        self.encoder = nn.ModuleList(
            [
                nn.Conv2d(3 + extra, dim, 7, 1, 3, bias=False),
                nn.Conv2d(dim, 2 * dim, 4, 2, 1, bias=False),
                nn.Conv2d(2 * dim, 4 * dim, 4, 2, 1, bias=False),
            ]
        )
        self.encoder_norms = nn.ModuleList([Norm(dim), Norm(2 * dim), Norm(4 * dim)])
        self.blocks = nn.ModuleList([ResidualBlock(4 * dim, style_dim) for _ in range(num_blocks)])
        self.decoder = nn.ModuleList([upsampler(4 * dim, 2 * dim, upsampling), upsampler(2 * dim, dim, upsampling)])
        self.decoder_norms = nn.ModuleList([Norm(2 * dim, style_dim), Norm(dim, style_dim)])
        self.to_pixels = nn.Conv2d(dim, 3 + (output == "blend"), 7, 1, 3, bias=output == "blend")
        self.start_near_source()

    def start_near_source(self) -> None:
        """A blend mostly shows the source at first; a plain image starts as initialised."""
        with torch.no_grad():
            if self.to_pixels.bias is not None:
                self.to_pixels.bias.zero_()
                self.to_pixels.bias[3] = BLEND_START

    def forward(self, images: Tensor, condition: Tensor) -> Tensor:
        if self.recomputes and torch.is_grad_enabled():
            # Nothing in here is drawn at random.
            found: Tensor = checkpoint(self.compute, images, condition, use_reentrant=False, preserve_rng_state=False)
            return found
        return self.compute(images, condition)

    def compute(self, images: Tensor, condition: Tensor) -> Tensor:
        """The edit, layer by layer."""
        style = self.mapping(condition) if self.mapping is not None else None
        activations = F.relu(self.encoder_norms[0](self.enter(images, condition), None))
        for conv, norm in zip(self.encoder[1:], self.encoder_norms[1:], strict=True):
            activations = F.relu(norm(conv(activations), None))
        for block in self.blocks:
            activations = block(activations, style)
        for conv, norm in zip(self.decoder, self.decoder_norms, strict=True):
            activations = F.relu(norm(conv(activations), style))
        return self.paint(images, single(self.to_pixels(activations)))

    def enter(self, images: Tensor, condition: Tensor) -> Tensor:
        """The first convolution, of the image and of the condition where it enters beside the image's channels."""
        first = self.encoder[0]
        if self.conditioning == "concat":
            return concat_convolution(images, condition, first.get_parameter("weight"))
        if self.conditioning == "tile":
            images = tile_plane(images, condition, self.get_buffer("layout"))
        activations: Tensor = first(images)
        return activations

    def paint(self, images: Tensor, pixels: Tensor) -> Tensor:
        """The last layer's values [N, 3 or 4, H, W] => edited images [N, 3, H, W]."""
        if self.output == "image":
            return pixels.tanh()
        mask = pixels[:, 3:].sigmoid()
        return images + mask * (pixels[:, :3].tanh() - images)
