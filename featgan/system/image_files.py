"""The reader of image files: every command gets the same pixels for the same file, and checks it before decoding."""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from featgan.errors import UserError
from featgan.system.files import open_regular_file
from featgan.system.image_integrity import LARGE_IMAGE_PIXELS, find_damage
from featgan.system.limits import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, MAX_IMAGE_SIDE, MAX_PROGRESSIVE_PIXELS
from featgan.system.plain_text import format_one_line

IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
"""Accepted file formats. Pillow's other decoders are not needed, and some of them start external programs."""

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
"""Lower-case suffixes of image files, used where no list names the images."""

FORMAT_NAMES = "JPEG, PNG, WebP, GIF, BMP, TIFF or PPM"

MIN_SIDE = 8
"""Minimum width and height in pixels; a smaller image contains nothing to edit."""

DECODER_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, struct.error, zlib.error)
"""Exceptions that Pillow's decoders raise for corrupted files."""

PROGRESSIVE_REASON = "too many pixels for a progressive JPEG"

REMEDIES = {
    "missing file": "check the path",
    "unreadable file": "check the file and its permissions",
    "not a regular file": "give an image file",
    "empty file": "copy it again",
    "not an image": f"use {FORMAT_NAMES}",
    "too many bytes": "use a smaller image",
    "too many pixels": "use a smaller image",
    PROGRESSIVE_REASON: "save it as a baseline JPEG, or use a smaller image",
    f"a side is longer than {MAX_IMAGE_SIDE:,} pixels": "use a smaller image",
    f"smaller than {MIN_SIDE} pixels": "use a larger image",
    "truncated": "copy it again",
    "corrupted": "copy it again",
}
"""What to do, by the reason why a file is rejected."""

CropWindow = tuple[int, int, int, int]
"""left, top, right, bottom in pixels."""

MAX_BAND_PIXELS = 1 << 20
"""Pixels of a large image that are converted at a time."""

SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "__macosx", "icon\r"})
"""Lower-case names of files and folders that operating systems add to folders of images."""

TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation => the operation that turns the image upright."""

SUBBYTE_SCALE = {"L;2": 85, "L;4": 17}
"""Raw mode of a PNG file with 2 or 4 bits per pixel => the factor by which Pillow multiplies its gray values."""


class ImageFileError(UserError):
    """An image file cannot be used; `reason` is a key of REMEDIES."""

    def __init__(self, location: str, reason: str) -> None:
        super().__init__(f"{location}{': ' if location else ''}{reason}; {REMEDIES[reason]}")
        self.reason = reason


def is_system_file(name: str) -> bool:
    """Return whether a file or folder was added by an operating system, such as `._a.jpg`, or is hidden."""
    return name.startswith((".", "__MACOSX")) or name.lower() in SYSTEM_FILES


def has_image_suffix(name: str) -> bool:
    """Return whether a file name ends like the name of an image, in upper or lower case."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def read_image(source: Path | bytes, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Return the image of a file, or of the content of a file, as upright RGB with 8 bits per channel.

    Transparent parts become white. Only the first frame of an animation is used. Format, size and sides are checked
    before an image is decoded. Raises ImageFileError if the file cannot be used.
    """
    location = "" if isinstance(source, bytes) else format_one_line(str(source))
    with warnings.catch_warnings(), convert_decoder_errors(location):
        warnings.simplefilter("ignore")
        with open_image_file(source, location) as file, Image.open(file, formats=IMAGE_FORMATS) as image:
            check_image_size(image, location, max_pixels)
            check_large_image(image, file, location)
            transparency_scale = read_transparency_scale(image)
            image.load()
            scale_transparency(image, *transparency_scale)
            return turn_upright(convert_to_rgb(image), read_orientation(image))


def find_image_problem(content: bytes, decodes: bool) -> str:
    """Return the reason why an image cannot be used, or an empty text.

    Without `decodes`, only the headers are read, and the end of the file is checked.
    """
    try:
        if decodes:
            read_image(content)
            return ""
        with warnings.catch_warnings(), convert_decoder_errors(""):
            warnings.simplefilter("ignore")
            with open_image_file(content, "") as file, Image.open(file, formats=IMAGE_FORMATS) as image:
                check_image_size(image, "", MAX_IMAGE_PIXELS)
                check_large_image(image, file, "")
                return find_damage(file, image.format or "")
    except ImageFileError as error:
        return error.reason


@contextmanager
def convert_decoder_errors(location: str) -> Iterator[None]:
    """Convert what the system and Pillow raise for an unusable file to an ImageFileError."""
    try:
        yield
    except ImageFileError:
        raise
    except UserError:
        raise ImageFileError(location, "not a regular file") from None
    except (FileNotFoundError, NotADirectoryError):
        raise ImageFileError(location, "missing file") from None
    except UnidentifiedImageError:
        raise ImageFileError(location, "not an image") from None
    except Image.DecompressionBombError:
        raise ImageFileError(location, "too many pixels") from None
    except (*DECODER_ERRORS, MemoryError) as error:
        # A decoder's own OSError has no error number; with a number, the file system refused to read the file.
        if isinstance(error, OSError) and error.errno is not None:
            raise ImageFileError(location, "unreadable file") from None
        raise ImageFileError(location, "truncated" if "truncated" in str(error).lower() else "corrupted") from None


def open_image_file(source: Path | bytes, location: str) -> BinaryIO:
    """Open a file, or the content of one. Raises ImageFileError if it is empty or too large."""
    file: BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else open_regular_file(source)
    try:
        size = file.seek(0, os.SEEK_END)
        if size == 0 or size > MAX_IMAGE_BYTES:
            raise ImageFileError(location, "too many bytes" if size else "empty file")
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def check_image_size(image: Image.Image, location: str, max_pixels: int) -> None:
    """Raise ImageFileError, before decoding, if the image is too large or too small."""
    if min(image.size) < MIN_SIDE:
        raise ImageFileError(location, f"smaller than {MIN_SIDE} pixels")
    if max(image.size) > MAX_IMAGE_SIDE:
        raise ImageFileError(location, f"a side is longer than {MAX_IMAGE_SIDE:,} pixels")
    if image.width * image.height > max_pixels:
        raise ImageFileError(location, "too many pixels")


def check_large_image(image: Image.Image, file: BinaryIO, location: str) -> None:
    """Raise ImageFileError, before decoding, if a large image is damaged or needs too much memory to find that out."""
    num_pixels = image.width * image.height
    if image.info.get("progressive") and num_pixels > MAX_PROGRESSIVE_PIXELS:
        raise ImageFileError(location, PROGRESSIVE_REASON)
    if num_pixels > LARGE_IMAGE_PIXELS and (damage := find_damage(file, image.format or "")):
        raise ImageFileError(location, damage)


# -- conversion to upright RGB -----------------------------------------------------------------------------------------


def convert_to_rgb(image: Image.Image) -> Image.Image:
    """Convert a decoded image of any mode to RGB; transparent parts become white."""
    if image.mode.startswith(("I", "F")):
        convert_band = make_deep_converter(image)
    elif image.has_transparency_data:
        convert_band = place_on_white
    else:
        return image.convert("RGB")
    result = Image.new("RGB", image.size)
    for band in split_into_bands(image.size):
        result.paste(convert_band(image.crop(band)), band)
    return result


def split_into_bands(size: tuple[int, int]) -> Iterator[CropWindow]:
    """Yield horizontal bands of an image: the conversion of a whole one would need 30 bytes for each pixel."""
    width, height = size
    rows = max(1, MAX_BAND_PIXELS // width)
    for top in range(0, height, rows):
        yield 0, top, width, min(top + rows, height)


def place_on_white(image: Image.Image) -> Image.Image:
    """Convert an image with transparency to RGB, on white."""
    # Pillow converts gray values with premultiplied transparency in two steps only.
    layers = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")


def make_deep_converter(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Return a function that converts parts of an image with 16 or 32 bits to RGB; the transparent value is white."""
    is_16_bit = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
    low, high = (0.0, 0.0) if is_16_bit else find_range(image)
    transparent_value = image.info.get("transparency")

    def convert_band(band: Image.Image) -> Image.Image:
        values = np.asarray(band)
        gray = (values.astype(np.int32) >> 8).astype(np.uint8) if is_16_bit else scale_unknown_range(values, low, high)
        if isinstance(transparent_value, int):
            gray = np.where(values == transparent_value, np.uint8(255), gray)
        return Image.fromarray(gray).convert("RGB")

    return convert_band


def find_range(image: Image.Image) -> tuple[float, float]:
    """Return the lowest and highest value of an image; values that are not finite count as 0."""
    bands = (make_finite(np.asarray(image.crop(band))) for band in split_into_bands(image.size))
    ranges = [(values.min(), values.max()) for values in bands]
    return float(min(low for low, _ in ranges)), float(max(high for _, high in ranges))


def make_finite(values: np.ndarray) -> np.ndarray:
    """Convert values to float64; those that are not finite become 0."""
    return np.where(np.isfinite(values), values, 0).astype(np.float64)


def scale_unknown_range(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scale 32-bit values to uint8: these files do not contain their range, so it is derived from the values.

    `low` and `high` are the lowest and highest value of the image. Values in 0 .. 1 (fractions only), 0 .. 255 and
    0 .. 65535 are read as such. Otherwise, the lowest value becomes black and the highest one white. Values that are
    not finite become black.
    """
    is_fraction = np.issubdtype(values.dtype, np.floating)
    finite = make_finite(values)
    if low < 0 or high > 65535:
        scaled = (finite - low) * (255 / max(high - low, 1e-30))
    elif high > 255:
        scaled = finite / 257
    else:
        scaled = finite * 255 if is_fraction and high <= 1 else finite
    return np.rint(scaled).astype(np.uint8)


def read_transparency_scale(image: Image.Image) -> tuple[int, int]:
    """Return the factor and the right shift between the transparent value of a PNG file and its decoded pixels.

    Pillow scales the pixels of these files to 8 bits, but not the value. Only an image that is not decoded yet has
    this information.
    """
    tiles = getattr(image, "tile", None) if image.format == "PNG" else None
    raw_mode = str(tiles[0].args) if tiles else ""
    return SUBBYTE_SCALE.get(raw_mode, 1), 8 * (raw_mode == "RGB;16B")


def scale_transparency(image: Image.Image, factor: int, shift: int) -> None:
    """Scale the transparent value of an image, if any, in the same way as its pixels."""
    value = image.info.get("transparency")
    if isinstance(value, int):
        image.info["transparency"] = value * factor
    elif isinstance(value, tuple):
        image.info["transparency"] = tuple(channel >> shift for channel in value)


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1, that is upright, if the EXIF data are corrupted."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except DECODER_ERRORS:
        return 1
    return orientation if isinstance(orientation, int) else 1


def turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    """Apply an EXIF orientation."""
    return image.transpose(TRANSPOSITIONS[orientation]) if orientation in TRANSPOSITIONS else image


# -- crops -------------------------------------------------------------------------------------------------------------


def fit_square(size: tuple[int, int], center_x: float, center_y: float, side: float) -> CropWindow:
    """Return a square around a point in integer pixels, moved and shrunk as needed to fit inside an image."""
    side = min(round(side), *size)
    left = min(max(int(center_x - side / 2), 0), size[0] - side)
    top = min(max(int(center_y - side / 2), 0), size[1] - side)
    return (left, top, left + side, top + side)


def fit_center_square(size: tuple[int, int], side: int | None = None) -> CropWindow:
    """Return the center square of an image of size (width, height): `side` pixels wide, or as large as possible."""
    width, height = size
    return fit_square(size, width / 2, height / 2, side or min(size))


def resize_crop(image: Image.Image, window: CropWindow, image_size: int) -> Image.Image:
    """Crop a square and resize it to `image_size` pixels."""
    return image.resize((image_size, image_size), Image.Resampling.LANCZOS, window)
