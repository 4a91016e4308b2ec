"""Images inside the page: filmstrips, mosaics and thumbnails as data URIs of base64 JPEGs.

JPEG takes at most a tenth of the time of WebP and about 50 % more bytes.
"""

import base64
import io

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from featgan.report.edits.rendering import difference_images
from featgan.report.figures.grids import to_pil_image

MAX_FRAME_SIZE = 128
"""Larger images are downscaled to this on the page; the files in the renders folder keep their size."""
JPEG_QUALITY, MAP_JPEG_QUALITY = 80, 70


def data_uri(image: Image.Image, quality: int = JPEG_QUALITY) -> str:
    """Return an image as a JPEG data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def downscale_images(images: Tensor) -> Tensor:
    """Downscale images uint8 [..., 3, S, S] to at most MAX_FRAME_SIZE."""
    size = images.shape[-1]
    if size <= MAX_FRAME_SIZE:
        return images
    flat = images.flatten(0, -4) if images.ndim > 4 else images
    small = F.interpolate(flat, (MAX_FRAME_SIZE, MAX_FRAME_SIZE), mode="bilinear", antialias=True)
    return small.reshape(*images.shape[:-2], MAX_FRAME_SIZE, MAX_FRAME_SIZE)


def tile_images(images: Tensor) -> Image.Image:
    """Tile images uint8 [R, C, 3, S, S] into one image without gaps."""
    num_rows, num_columns, _, height, width = images.shape
    pixels = images.permute(0, 3, 1, 4, 2).reshape(num_rows * height, num_columns * width, 3)
    return Image.fromarray(pixels.numpy())


def encode_filmstrip(frames: Tensor) -> str:
    """Encode frames uint8 [T, 3, S, S] side by side without gaps; the page shows one at a time."""
    return data_uri(tile_images(downscale_images(frames)[None]))


def encode_difference_filmstrip(differences: Tensor, scale: float) -> str:
    """Encode the difference maps of shares [T, S, S] side by side, at half the size."""
    small = F.avg_pool2d(differences, 2, ceil_mode=True)
    return data_uri(tile_images(difference_images(small, scale)[None]), MAP_JPEG_QUALITY)


def encode_thumbnail(image: Tensor) -> str:
    """Encode one image uint8 [3, S, S]."""
    return data_uri(to_pil_image(downscale_images(image[None])[0]))


def encode_mosaic(columns: list[Tensor]) -> str:
    """Encode columns of images uint8 [R, 3, S, S] side by side without gaps; the page draws lines between them."""
    return data_uri(tile_images(downscale_images(torch.stack(columns, 1))))
