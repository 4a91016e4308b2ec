"""The images that are edited: a fixed sample of the run's validation images, or images given by the user."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from featgan.errors import UserError
from featgan.system.image_files import (
    FORMAT_NAMES,
    fit_center_square,
    has_image_suffix,
    is_system_file,
    read_image,
    resize_crop,
)
from featgan.system.limits import MAX_IMAGE_PIXELS
from featgan.system.plain_text import format_one_line

logger = logging.getLogger(__name__)

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
        queues = [list(candidates[labels[candidates] == label][:count]) for label in np.unique(labels[candidates])]
        while len(chosen) < count and any(queues):
            chosen += [int(queue.pop(0)) for queue in queues if queue]
    return np.array(chosen[:count], np.int64)


def read_image_folder(folder: Path, image_size: int, max_images: int) -> tuple[Tensor, tuple[str, ...]]:
    """Read the first `max_images` images of a folder, by name: uint8 [N, 3, image_size, image_size] and file names.

    Unreadable files are skipped with a warning. Raises UserError if the folder is missing or has no readable image.
    """
    images: list[Tensor] = []
    names: list[str] = []
    paths = list_image_files(folder)
    for path in paths:
        if len(images) == max_images:
            logger.info(f"{folder}: using the first {max_images} readable images")
            break
        try:
            images.append(read_square_images(path, [image_size])[image_size])
            names.append(format_one_line(path.name))
        except UserError as error:
            logger.warning(f"skipped {error}")
    if not images:
        raise no_images_error(folder, len(paths))
    return torch.stack(images), tuple(names)


def no_images_error(folder: Path, num_files: int) -> UserError:
    """Return the error for a folder without readable images; it names a folder inside that has images."""
    if num_files:
        return UserError(f"{folder}: none of its {num_files} image files is readable; use {FORMAT_NAMES}")
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        with suppress(OSError, UserError):
            if list_image_files(inner):
                name = format_one_line(str(inner))
                return UserError(
                    f"{folder}: contains image files only in its folders; give one of them, such as {name}"
                )
    return UserError(f"{folder}: contains no image files; use {FORMAT_NAMES}")


def list_image_files(folder: Path) -> list[Path]:
    """Return the files of a folder with the suffix of an image in order of name, without hidden files.

    Raises UserError if it is not a folder or has more than MAX_FOLDER_ENTRIES files.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; --images expects a folder of images")
    paths = []
    for path in folder.iterdir():
        if has_image_suffix(path.name) and not is_system_file(path.name) and not path.is_dir():
            paths.append(path)
        if len(paths) > MAX_FOLDER_ENTRIES:
            raise UserError(f"{folder}: more than {MAX_FOLDER_ENTRIES} files; copy the images to edit to a folder")
    return sorted(paths)


def read_square_images(
    source: Path | bytes, sizes: Sequence[int], max_pixels: int = MAX_IMAGE_PIXELS
) -> dict[int, Tensor]:
    """Read an image file, or the content of one, and crop the center square: uint8 [3, S, S] for every S of `sizes`.

    Raises UserError if the file cannot be used.
    """
    image = read_image(source, max_pixels)
    window = fit_center_square(image.size)
    return {
        size: torch.from_numpy(np.array(resize_crop(image, window, size))).permute(2, 0, 1).contiguous()
        for size in sizes
    }


def label_names(codes: np.ndarray, rows: Sequence[int] | np.ndarray, classes: Sequence[str]) -> list[str]:
    """Return the class name of each row; empty if it is not known."""
    return [classes[codes[row]] if 0 <= codes[row] < len(classes) else "" for row in rows]
