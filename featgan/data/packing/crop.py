"""One image file => the square JPEG that is packed, or the reason why it is not."""

import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")
"""File formats that are read; others run decoders, or even programs, that nobody needs here."""

MAX_PIXELS = 100_000_000
MIN_SIDE = 8

DECODER_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, struct.error)
"""What Pillow's decoders raise on damaged files."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class CropOptions:
    """How an image becomes a square of `image_size` pixels."""

    image_size: int
    quality: int
    crop: int | None
    """Side of a centre crop in pixels; None takes the face box, or the largest centre square where there is none."""
    margin: float
    """Added around the face box on every side, as a share of its longer side."""


@dataclass(frozen=True)
class CropJob:
    """One image: where it is and its face box (x, y, width, height) in pixels."""

    path: Path
    face_box: Box | None


@dataclass(frozen=True)
class Crop:
    """The JPEG, or why there is none."""

    jpeg: bytes = b""
    refusal: str = ""


class RefusalError(Exception):
    """The reason why an image is not packed."""


def crop_files(jobs: Sequence[CropJob], options: CropOptions) -> list[Crop]:
    """Many images, in order; runs in worker processes."""
    return [crop_file(job, options) for job in jobs]


def crop_file(job: CropJob, options: CropOptions) -> Crop:
    """Read, crop, resize and compress one image."""
    try:
        image = read_image(job.path)
        box = choose_box(image.size, job.face_box, options)
        side = options.image_size
        return Crop(compress(image.resize((side, side), Image.Resampling.LANCZOS, box=box), options.quality))
    except RefusalError as refusal:
        return Crop(refusal=str(refusal))


def read_image(path: Path) -> Image.Image:
    """The whole image, upright, as RGB; RefusalError when it is unreadable, truncated, too large or no image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                check_header(image)
                return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise RefusalError("missing file") from None
    except (PermissionError, IsADirectoryError):
        raise RefusalError("unreadable file") from None
    except UnidentifiedImageError:
        raise RefusalError("empty file" if path.stat().st_size == 0 else "not an image") from None
    except Image.DecompressionBombError:
        raise RefusalError("too many pixels") from None
    except (*DECODER_ERRORS, zlib.error, MemoryError) as error:
        raise RefusalError("truncated" if "truncated" in str(error).lower() else "damaged") from None


def check_header(image: Image.Image) -> None:
    """Refuse before decoding what is too large to decode or would lose its grey levels."""
    if image.width * image.height > MAX_PIXELS:
        raise RefusalError("too many pixels")
    if image.mode.startswith(("I", "F")):
        raise RefusalError("not 8 bits a channel")


def choose_box(size: tuple[int, int], face_box: Box | None, options: CropOptions) -> Box:
    """The square (left, top, right, bottom) that is kept of an image of (width, height)."""
    width, height = size
    if options.crop is None and face_box is not None:
        x, y, box_width, box_height = face_box
        if min(box_width, box_height) <= 0 or x + box_width <= 0 or y + box_height <= 0 or x >= width or y >= height:
            raise RefusalError("face box outside the image")
        side = max(box_width, box_height) * (1 + 2 * options.margin)
        return square(size, x + box_width / 2, y + box_height / 2, side)
    return square(size, width / 2, height / 2, options.crop or min(width, height))


def square(size: tuple[int, int], centre_x: float, centre_y: float, side: float) -> Box:
    """A square of whole pixels around a point, moved and shrunk as needed to lie within the image."""
    side = min(round(side), *size)
    if side < MIN_SIDE:
        raise RefusalError(f"smaller than {MIN_SIDE} pixels")
    left = min(max(int(centre_x - side / 2), 0), size[0] - side)
    top = min(max(int(centre_y - side / 2), 0), size[1] - side)
    return (left, top, left + side, top + side)


def compress(image: Image.Image, quality: int) -> bytes:
    """JPEG at full colour resolution: at these sizes halved colour planes are seen by the discriminator."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()
