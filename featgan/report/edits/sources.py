"""The images that are edited: a fixed sample of the run's validation images, or any images of the user's."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from featgan.errors import UserError
from featgan.system.progress import console

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_FILE_BYTES = 64 << 20
MAX_PIXELS = 50_000_000
"""A larger picture is skipped before it is decoded."""
MAX_FOLDER_ENTRIES = 10_000


@dataclass(frozen=True)
class Sources:
    """N source images; their untouched values are features [N, F] or label conditions [N, C], None where unknown."""

    images: Tensor  # uint8 [N, 3, S, S]
    names: tuple[str, ...]
    values: Tensor | None
    origin: str
    are_given: bool = False  # by the user, in place of the run's validation images

    def __len__(self) -> int:
        return len(self.images)


def sample_rows(
    labels: np.ndarray, usable: np.ndarray, count: int, seed: int, preferred: np.ndarray | None = None
) -> np.ndarray:
    """Up to `count` of the usable rows, the same for the same seed, taken from the classes in turn.

    `labels` [N] holds class codes, -1 where unknown; `usable` and `preferred` hold row numbers. Rows that
    are not preferred are taken once those that are have been used up.
    """
    generator = np.random.default_rng(np.random.SeedSequence([seed, 0x50DE]))
    shuffled = generator.permutation(np.asarray(usable))
    is_preferred = np.isin(shuffled, () if preferred is None else preferred)
    chosen: list[int] = []
    for pool in (shuffled[is_preferred], shuffled[~is_preferred]):
        queues = [list(pool[labels[pool] == label]) for label in np.unique(labels[pool])]
        while len(chosen) < count and any(queues):
            chosen += [int(queue.pop(0)) for queue in queues if queue]
    return np.array(chosen[:count], np.int64)


def read_folder(folder: Path, image_size: int, most: int) -> tuple[Tensor, tuple[str, ...]]:
    """The first `most` readable images of a folder, by name: uint8 [N, 3, image_size, image_size] and file names.

    Unreadable ones are skipped with a remark; UserError when the folder is missing or none can be read.
    """
    images: list[Tensor] = []
    names: list[str] = []
    paths = list_files(folder)
    for path in paths:
        if len(images) == most:
            console.print(f"{folder}: the first {most} readable images are used", markup=False)
            break
        try:
            images.append(read_image(path, image_size))
            names.append(path.name)
        except UserError as error:
            console.print(f"skipped {error}", markup=False)
    if not images:
        raise UserError(f"{folder}: none of its {len(paths)} files is a readable JPEG, PNG, WebP or BMP image")
    return torch.stack(images), tuple(names)


def list_files(folder: Path) -> list[Path]:
    """The folder's plain files by name, hidden ones left out; UserError when it is no folder or holds too many."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; --images takes a folder of images")
    paths = []
    for path in folder.iterdir():
        if path.is_file() and not path.name.startswith("."):
            paths.append(path)
        if len(paths) > MAX_FOLDER_ENTRIES:
            raise UserError(f"{folder}: more than {MAX_FOLDER_ENTRIES} files; copy the images you mean into a folder")
    return sorted(paths)


def read_image(path: Path, image_size: int) -> Tensor:
    """Decode, turn upright, crop to the central square, resize: uint8 [3, image_size, image_size].

    Only the formats of FORMATS are tried, and the sizes are checked before decoding; UserError otherwise.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB")
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{path}: {image.width} x {image.height} pixels, more than {MAX_PIXELS} in all")
            image.draft("RGB", (2 * image_size, 2 * image_size))
            upright = ImageOps.exif_transpose(image)
            fitted = ImageOps.fit(on_white(upright), (image_size, image_size), Image.Resampling.LANCZOS)
    except UnidentifiedImageError:
        raise UserError(f"{path}: not a readable JPEG, PNG, WebP or BMP image") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a readable image ({error})") from None
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).contiguous()


def on_white(image: Image.Image) -> Image.Image:
    """Any mode as RGB; transparent parts become white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    layers = image.convert("RGBA")
    ground = Image.new("RGBA", layers.size, "white")
    return Image.alpha_composite(ground, layers).convert("RGB")


def label_names(codes: np.ndarray, rows: Sequence[int] | np.ndarray, classes: Sequence[str]) -> list[str]:
    """The class name of each row, or nothing where it is unknown."""
    return [classes[codes[row]] if 0 <= codes[row] < len(classes) else "" for row in rows]
