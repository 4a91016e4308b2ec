"""The pictures that can be edited: validation images of the run, and those that the user drops in."""

import secrets
import tempfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from featgan.data.packing.crop import DECODER_ERRORS
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from featgan.report.edits.sources import label_names, read_image, sample_rows
from featgan.report.figures.grids import to_image

MOST_BYTES = 16 << 20
"""Of a picture that is dropped in."""
MOST_PIXELS = 25_000_000
"""Of a picture that is dropped in; a larger one is refused before it is decoded."""
MOST_KEPT = 32
"""Dropped pictures kept, in the sizes of the runs only; the oldest gives way."""
MOST_NAME = 80
SIGNATURES = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n"}
"""How the files that are decoded start; nothing else reaches a decoder."""


class GoneError(UserError):
    """A picture that is not there, or no longer."""


@dataclass(frozen=True)
class Picture:
    """One image in the sizes of the runs: uint8 [3, S, S] by S."""

    id: str
    name: str
    images: Mapping[int, Tensor]
    row: int = -1
    """Of the validation split, where it is from there."""
    origin: str = ""
    """Fingerprint of its shards."""


class Gallery:
    """The validation images of a shard set that a run can start from."""

    def __init__(self, shards: ShardSet, usable: np.ndarray, sizes: Sequence[int]) -> None:
        self.shards = shards
        self.usable = usable
        self.sizes = sizes
        self.lock = Lock()
        self.read = lru_cache(256)(self.decode)

    def sample(self, count: int, seed: int) -> list[Picture]:
        """Up to `count` of them, the same for the same seed, from the classes in turn."""
        labels = self.shards.split("validation").expression
        return [self.read(int(row)) for row in sample_rows(labels, self.usable, count, seed)]

    def decode(self, row: int) -> Picture:
        """An image of the split by its row; GoneError when there is no such row."""
        split = self.shards.split("validation")
        if not 0 <= row < len(split):
            raise GoneError("no such validation image")
        with self.lock:
            image = split.decode([row])[0]
        label = label_names(split.expression, [row], self.shards.classes)[0]
        name = f"{split.keys[row]} ({label})" if label else str(split.keys[row])
        images = {size: resize(image, size) for size in self.sizes}
        return Picture(f"v{row}", name, images, row, self.shards.fingerprint)


def resize(image: Tensor, size: int) -> Tensor:
    """uint8 [3, S, S] => uint8 [3, size, size]."""
    if image.shape[-1] == size:
        return image
    resized = to_image(image).resize((size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


class Pictures:
    """Every picture by its id: `v12` is row 12 of the validation images, `u...` was dropped in."""

    def __init__(self, gallery: Gallery | None, sizes: Sequence[int]) -> None:
        self.gallery = gallery
        self.sizes = sizes
        self.dropped: OrderedDict[str, Picture] = OrderedDict()

    def find(self, name: str) -> Picture:
        """GoneError when there is none of that id, or it has given way to newer ones."""
        if name.startswith("v") and name[1:].isdecimal() and len(name) < 12 and self.gallery:
            return self.gallery.read(int(name[1:]))
        if name not in self.dropped:
            raise GoneError("this picture is no longer kept; drop it in again")
        return self.dropped[name]

    def sample(self, count: int, seed: int = 0) -> list[Picture]:
        """Validation images; none where the run's shards are gone."""
        return self.gallery.sample(count, seed) if self.gallery else []

    def add(self, content: bytes, name: str) -> Picture:
        """Decode and keep a picture that was dropped in; UserError when it is no JPEG or PNG, damaged or too large."""
        shown = " ".join(name.split())[:MOST_NAME] or "your image"
        picture = Picture(f"u{secrets.token_hex(8)}", shown, decode_upload(content, self.sizes))
        while len(self.dropped) >= MOST_KEPT:
            self.dropped.popitem(last=False)
        self.dropped[picture.id] = picture
        return picture


def decode_upload(content: bytes, sizes: Sequence[int]) -> dict[int, Tensor]:
    """Bytes of a JPEG or PNG => uint8 [3, S, S] for every S of `sizes`, upright, cropped to the central square."""
    if len(content) > MOST_BYTES:
        raise UserError(f"larger than {MOST_BYTES >> 20} MiB; drop in a smaller picture")
    if not content.startswith(tuple(SIGNATURES.values())):
        raise UserError("not a JPEG or PNG image")
    with tempfile.NamedTemporaryFile(prefix="featgan-") as file:
        file.write(content)
        file.flush()
        path = Path(file.name)
        try:
            check_pixels(path)
            return {size: read_image(path, size) for size in sizes}
        except UserError as error:
            raise UserError(str(error).removeprefix(f"{path}: ")) from None
        except (*DECODER_ERRORS, zlib.error, MemoryError):
            raise UserError("not a readable image: it is damaged") from None


def check_pixels(path: Path) -> None:
    """UserError for a picture that is too large to decode here; only its header is read."""
    try:
        with Image.open(path, formats=tuple(SIGNATURES)) as image:
            count = image.width * image.height
    except Image.DecompressionBombError:
        count = MOST_PIXELS + 1
    if count > MOST_PIXELS:
        raise UserError(f"more than {MOST_PIXELS // 1_000_000} million pixels; drop in a smaller picture")
