"""Pictures as data inside the page: films, mosaics and thumbnails as base64 JPEG.

JPEG at this quality takes a tenth of WebP's time, or less, for about half as many bytes again.
"""

import base64
import io

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from featgan.report.edits.rendering import difference_images
from featgan.report.figures.grids import to_image

MAX_FRAME = 128
"""Larger images are reduced to this on the page; the files in the renders folder keep their size."""
QUALITY, MAP_QUALITY = 80, 70


def data_uri(picture: Image.Image, quality: int = QUALITY) -> str:
    """A picture as a JPEG data address."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def reduced(images: Tensor) -> Tensor:
    """Images uint8 [..., 3, S, S], not larger than the page shows them."""
    size = images.shape[-1]
    if size <= MAX_FRAME:
        return images
    flat = images.flatten(0, -4) if images.ndim > 4 else images
    small = F.interpolate(flat, (MAX_FRAME, MAX_FRAME), mode="bilinear", antialias=True)
    return small.reshape(*images.shape[:-2], MAX_FRAME, MAX_FRAME)


def sheet(images: Tensor) -> Image.Image:
    """Rows of images uint8 [R, C, 3, S, S] as one picture without gaps."""
    num_rows, num_columns, _, height, width = images.shape
    pixels = images.permute(0, 3, 1, 4, 2).reshape(num_rows * height, num_columns * width, 3)
    return Image.fromarray(pixels.numpy())


def film(frames: Tensor) -> str:
    """Frames uint8 [T, 3, S, S] in a line without gaps: the page shows one at a time."""
    return data_uri(sheet(reduced(frames)[None]))


def map_film(differences: Tensor, scale: float) -> str:
    """Difference maps of shares [T, S, S] in a line, at half the size."""
    small = F.avg_pool2d(differences, 2, ceil_mode=True)
    return data_uri(sheet(difference_images(small, scale)[None]), MAP_QUALITY)


def thumbnail(image: Tensor) -> str:
    """One image uint8 [3, S, S]."""
    return data_uri(to_image(reduced(image[None])[0]))


def mosaic(columns: list[Tensor]) -> str:
    """Columns of images uint8 [R, 3, S, S], side by side without gaps: the page draws its own lines between."""
    return data_uri(sheet(reduced(torch.stack(columns, 1))))
