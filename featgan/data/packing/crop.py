"""Cropping: convert one image file to a square JPEG, or return the reason why it is skipped."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from featgan.data.readers.records import BoundingBox, Record
from featgan.data.webdataset.samples import ImageReader
from featgan.system.image_files import (
    MIN_SIDE,
    CropWindow,
    ImageFileError,
    fit_center_square,
    fit_square,
    read_image,
    resize_crop,
)


@dataclass(frozen=True)
class CropOptions:
    """Options that determine how an image is converted to a square of `image_size` pixels."""

    image_size: int
    quality: int
    crop: int | None
    """Side of the center crop in pixels; None uses the bounding box, or the largest center square without one."""
    margin: float
    """Margin added on each side of the bounding box, as a fraction of its longer side."""


@dataclass(frozen=True)
class CropJob:
    """One image to crop: its path, or the content of its file, and its face bounding box, if known."""

    source: Path | bytes
    bounding_box: BoundingBox | None

    @classmethod
    def from_record(cls, record: Record, images: ImageReader) -> "CropJob":
        """Return the job of a record. `images` reads the image if it is a part of a tar."""
        if record.tar is not None:
            return cls(images.read(record.tar), record.bounding_box)
        return cls(record.path if record.content is None else record.content, record.bounding_box)


@dataclass(frozen=True)
class Crop:
    """The JPEG, or the reason why the image is skipped."""

    jpeg: bytes = b""
    skip_reason: str = ""


class SkipImageError(Exception):
    """Raised with the reason why an image is skipped."""


def crop_files(jobs: Sequence[CropJob], options: CropOptions) -> list[Crop]:
    """Crop several images, in order; runs in worker processes."""
    return [crop_file(job, options) for job in jobs]


def crop_file(job: CropJob, options: CropOptions) -> Crop:
    """Read, crop, resize and compress one image."""
    try:
        image = read_image(job.source)
        window = choose_crop_window(image.size, job.bounding_box, options)
        return Crop(encode_jpeg(resize_crop(image, window, options.image_size), options.quality))
    except ImageFileError as error:
        return Crop(skip_reason=error.reason)
    except SkipImageError as error:
        return Crop(skip_reason=str(error))


def choose_crop_window(size: tuple[int, int], bounding_box: BoundingBox | None, options: CropOptions) -> CropWindow:
    """Return the square to crop from an image of size (width, height). Raises SkipImageError if it is too small."""
    width, height = size
    if options.crop is not None or bounding_box is None:
        return fit_center_square(size, options.crop)
    x, y, face_width, face_height = bounding_box
    is_outside = x + face_width <= 0 or y + face_height <= 0 or x >= width or y >= height
    if min(face_width, face_height) <= 0 or is_outside:
        raise SkipImageError("bounding box outside the image")
    side = max(face_width, face_height) * (1 + 2 * options.margin)
    if round(side) < MIN_SIDE:
        raise SkipImageError(f"smaller than {MIN_SIDE} pixels")
    return fit_square(size, x + face_width / 2, y + face_height / 2, side)


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """Encode a JPEG without chroma subsampling: at small sizes the discriminator can detect subsampled colors."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()
