"""Pictures as data inside the page: films, mosaics and thumbnails as base64 WebP."""

import base64
import io

from PIL import Image
from torch import Tensor

from featgan.report.grids import to_image

MAX_FRAME = 128
"""Larger images are reduced to this on the page; the files in the renders folder keep their size."""
QUALITY = 78
MOSAIC_GAP = 3


def frame_size(image_size: int) -> int:
    return min(image_size, MAX_FRAME)


def data_uri(picture: Image.Image, quality: int = QUALITY) -> str:
    """A picture as a WebP data address."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def thumbnail(image: Tensor) -> str:
    """One image uint8 [3, S, S]."""
    return data_uri(to_image(image, frame_size(image.shape[-1])))


def film(rows: Tensor) -> str:
    """Frames uint8 [R, T, 3, S, S] without gaps, a line for each row: the page shows one frame at a time."""
    size = frame_size(rows.shape[-1])
    sheet = Image.new("RGB", (rows.shape[1] * size, rows.shape[0] * size))
    for row, frames in enumerate(rows):
        for column, frame in enumerate(frames):
            sheet.paste(to_image(frame, size), (column * size, row * size))
    return data_uri(sheet)


def mosaic(columns: list[Tensor]) -> str:
    """Columns of images uint8 [R, 3, S, S] with transparent gaps between."""
    size = frame_size(columns[0].shape[-1])
    pitch = size + MOSAIC_GAP
    sheet = Image.new("RGBA", (len(columns) * pitch - MOSAIC_GAP, len(columns[0]) * pitch - MOSAIC_GAP), (0, 0, 0, 0))
    for column, images in enumerate(columns):
        for row, image in enumerate(images):
            sheet.paste(to_image(image, size), (column * pitch, row * pitch))
    return data_uri(sheet)


def gap_share(num_columns: int, image_size: int) -> float:
    """The width of a mosaic's gap in percent of the mosaic's width."""
    return 100 * MOSAIC_GAP / (num_columns * (frame_size(image_size) + MOSAIC_GAP) - MOSAIC_GAP)
