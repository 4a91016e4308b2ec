"""Cropping: convert one image file to a square JPEG, or return the reason why it is skipped."""

import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from featgan.data.readers.records import BoundingBox

IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")
"""Accepted file formats. Pillow's other decoders are not needed, and some of them start external programs."""

MAX_PIXELS = 100_000_000
MIN_SIDE = 8

DECODER_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, struct.error)
"""Exceptions that Pillow's decoders raise for corrupted files."""

CropWindow = tuple[int, int, int, int]
"""left, top, right, bottom in pixels."""


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
    """One image to crop: its path and its face bounding box, if known."""

    path: Path
    bounding_box: BoundingBox | None


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
        image = read_image(job.path)
        window = choose_crop_window(image.size, job.bounding_box, options)
        side = options.image_size
        return Crop(encode_jpeg(image.resize((side, side), Image.Resampling.LANCZOS, window), options.quality))
    except SkipImageError as error:
        return Crop(skip_reason=str(error))


def read_image(path: Path) -> Image.Image:
    """Return the image as upright RGB. Raises SkipImageError if it is unreadable, corrupted or too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=IMAGE_FORMATS) as image:
                check_header(image)
                return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise SkipImageError("missing file") from None
    except (PermissionError, IsADirectoryError):
        raise SkipImageError("unreadable file") from None
    except UnidentifiedImageError:
        raise SkipImageError("empty file" if path.stat().st_size == 0 else "not an image") from None
    except Image.DecompressionBombError:
        raise SkipImageError("too many pixels") from None
    except (*DECODER_ERRORS, zlib.error, MemoryError) as error:
        raise SkipImageError("truncated" if "truncated" in str(error).lower() else "corrupted") from None


def check_header(image: Image.Image) -> None:
    """Raise SkipImageError, before decoding, if the image is too large or has more than 8 bits per channel."""
    if image.width * image.height > MAX_PIXELS:
        raise SkipImageError("too many pixels")
    if image.mode.startswith(("I", "F")):
        raise SkipImageError("not 8 bits per channel")


def choose_crop_window(size: tuple[int, int], bounding_box: BoundingBox | None, options: CropOptions) -> CropWindow:
    """Return the square to crop from an image of size (width, height)."""
    width, height = size
    if options.crop is None and bounding_box is not None:
        x, y, face_width, face_height = bounding_box
        is_outside = x + face_width <= 0 or y + face_height <= 0 or x >= width or y >= height
        if min(face_width, face_height) <= 0 or is_outside:
            raise SkipImageError("bounding box outside the image")
        side = max(face_width, face_height) * (1 + 2 * options.margin)
        return fit_square(size, x + face_width / 2, y + face_height / 2, side)
    return fit_square(size, width / 2, height / 2, options.crop or min(width, height))


def fit_square(size: tuple[int, int], center_x: float, center_y: float, side: float) -> CropWindow:
    """Return a square around a point in integer pixels, moved and shrunk as needed to fit inside the image."""
    side = min(round(side), *size)
    if side < MIN_SIDE:
        raise SkipImageError(f"smaller than {MIN_SIDE} pixels")
    left = min(max(int(center_x - side / 2), 0), size[0] - side)
    top = min(max(int(center_y - side / 2), 0), size[1] - side)
    return (left, top, left + side, top + side)


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """Encode a JPEG without chroma subsampling: at small sizes the discriminator can detect subsampled colors."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()
