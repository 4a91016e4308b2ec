"""The images that are edited: a fixed sample of the run's validation images, or images given by the user."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from featgan.errors import UserError

logger = logging.getLogger(__name__)

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_FILE_BYTES = 64 << 20
MAX_PIXELS = 50_000_000
"""A larger image is skipped before it is decoded."""
MAX_FOLDER_ENTRIES = 10_000


@dataclass(frozen=True)
class SourceImages:
    """N source images with their features [N, F] or label conditions [N, C] as `values`; None if not known."""

    images: Tensor  # uint8 [N, 3, S, S]
    names: tuple[str, ...]
    values: Tensor | None
    origin: str  # `validation images`
    is_user_provided: bool = False  # instead of validation images of the run

    def __len__(self) -> int:
        return len(self.images)


def sample_rows(
    labels: np.ndarray, usable: np.ndarray, count: int, seed: int, preferred: np.ndarray | None = None
) -> np.ndarray:
    """Sample at most `count` of the usable rows, from each class in turn; the result depends on the seed only.

    `labels` [N] holds class codes, or -1 if not known; `usable` and `preferred` hold row numbers. Rows that
    are not preferred are used only after all preferred rows.
    """
    generator = np.random.default_rng(np.random.SeedSequence([seed, 0x50DE]))
    shuffled = generator.permutation(np.asarray(usable))
    is_preferred = np.isin(shuffled, () if preferred is None else preferred)
    chosen: list[int] = []
    for candidates in (shuffled[is_preferred], shuffled[~is_preferred]):
        queues = [list(candidates[labels[candidates] == label]) for label in np.unique(labels[candidates])]
        while len(chosen) < count and any(queues):
            chosen += [int(queue.pop(0)) for queue in queues if queue]
    return np.array(chosen[:count], np.int64)


def read_image_folder(folder: Path, image_size: int, max_images: int) -> tuple[Tensor, tuple[str, ...]]:
    """Read the first `max_images` images of a folder, by name: uint8 [N, 3, image_size, image_size] and file names.

    Unreadable files are skipped with a warning. Raises UserError if the folder is missing or has no readable image.
    """
    images: list[Tensor] = []
    names: list[str] = []
    paths = list_visible_files(folder)
    for path in paths:
        if len(images) == max_images:
            logger.info(f"{folder}: using the first {max_images} readable images")
            break
        try:
            images.append(read_square_image(path, image_size))
            names.append(path.name)
        except UserError as error:
            logger.warning(f"skipped {error}")
    if not images:
        raise UserError(f"{folder}: none of its {len(paths)} files is a readable image; use JPEG, PNG, WebP or BMP")
    return torch.stack(images), tuple(names)


def list_visible_files(folder: Path) -> list[Path]:
    """Return the files of a folder in order of name, without hidden files.

    Raises UserError if it is not a folder or has more than MAX_FOLDER_ENTRIES files.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; --images expects a folder of images")
    paths = []
    for path in folder.iterdir():
        if path.is_file() and not path.name.startswith("."):
            paths.append(path)
        if len(paths) > MAX_FOLDER_ENTRIES:
            raise UserError(f"{folder}: more than {MAX_FOLDER_ENTRIES} files; copy the images to edit to a folder")
    return sorted(paths)


def read_square_image(path: Path, image_size: int) -> Tensor:
    """Decode an image, rotate it upright, crop the central square and resize it: uint8 [3, image_size, image_size].

    Raises UserError if the file is too large, has too many pixels, or is not readable in one of FORMATS.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB; use a smaller image")
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                limit = MAX_PIXELS // 1_000_000
                raise UserError(f"{path}: has more than {limit} million pixels; use a smaller image")
            image.draft("RGB", (2 * image_size, 2 * image_size))
            upright = ImageOps.exif_transpose(image)
            fitted = ImageOps.fit(flatten_on_white(upright), (image_size, image_size), Image.Resampling.LANCZOS)
    except UnidentifiedImageError:
        raise UserError(f"{path}: not a readable image; use JPEG, PNG, WebP or BMP") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a readable image ({error}); the file may be corrupted") from None
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).contiguous()


def flatten_on_white(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB; transparent parts become white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    layers = image.convert("RGBA")
    background = Image.new("RGBA", layers.size, "white")
    return Image.alpha_composite(background, layers).convert("RGB")


def label_names(codes: np.ndarray, rows: Sequence[int] | np.ndarray, classes: Sequence[str]) -> list[str]:
    """Return the class name of each row; empty if it is not known."""
    return [classes[codes[row]] if 0 <= codes[row] < len(classes) else "" for row in rows]
