"""The images that can be edited: validation images of the run and uploaded images."""

import secrets
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from featgan.report.edits.sources import label_names, read_square_images, sample_rows
from featgan.report.figures.grids import to_pil_image

MAX_UPLOAD_BYTES = 16 << 20
"""Maximum file size of an uploaded image."""
MAX_UPLOAD_PIXELS = 25_000_000
"""Maximum number of pixels of an uploaded image; checked before the image is decoded."""
MAX_STORED_UPLOADS = 32
"""Number of uploaded images that are kept; the oldest is evicted."""
MAX_NAME_LENGTH = 80


class ImageNotFoundError(UserError):
    """The image does not exist or has been evicted."""


@dataclass(frozen=True)
class StoredImage:
    """One image at the image size of every run: uint8 [3, S, S] by S."""

    id: str
    name: str
    images_by_size: Mapping[int, Tensor]
    row: int = -1
    """Row in the validation split; -1 for an uploaded image."""
    shards_fingerprint: str = ""
    """Fingerprint of the shards that contain it."""


class ValidationImages:
    """The validation images of a shard set that have a known source condition."""

    def __init__(self, shards: ShardSet, rows: np.ndarray, sizes: Sequence[int]) -> None:
        self.shards = shards
        self.rows = rows
        self.sizes = sizes
        self.lock = Lock()
        self.decode_cached = lru_cache(256)(self.decode)

    def sample(self, count: int, seed: int) -> list[StoredImage]:
        """Return up to `count` images, spread over the classes; the same seed returns the same images."""
        labels = self.shards.get_split("validation").expression
        return [self.decode_cached(int(row)) for row in sample_rows(labels, self.rows, count, seed)]

    def decode(self, row: int) -> StoredImage:
        """Decode the image in a row of the validation split.

        Raises ImageNotFoundError if there is no such row.
        """
        split = self.shards.get_split("validation")
        if not 0 <= row < len(split):
            raise ImageNotFoundError("no such validation image")
        with self.lock:
            image = split.decode([row])[0]
        label = label_names(split.expression, [row], self.shards.classes)[0]
        key = str(split.keys_of([row])[0])
        name = f"{key} ({label})" if label else key
        images = {size: resize_image(image, size) for size in self.sizes}
        return StoredImage(f"v{row}", name, images, row, self.shards.fingerprint)


def resize_image(image: Tensor, size: int) -> Tensor:
    """Resize an image: uint8 [3, S, S] => uint8 [3, size, size]."""
    if image.shape[-1] == size:
        return image
    resized = to_pil_image(image).resize((size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


class ImageStore:
    """All images by id: `v12` is row 12 of the validation split, `u...` is an uploaded image."""

    def __init__(self, validation_images: ValidationImages | None, sizes: Sequence[int]) -> None:
        self.validation_images = validation_images
        self.sizes = sizes
        self.uploads: OrderedDict[str, StoredImage] = OrderedDict()

    def find_image(self, image_id: str) -> StoredImage:
        """Return the image with an id.

        Raises ImageNotFoundError if there is none, or if it has been evicted.
        """
        if image_id.startswith("v") and image_id[1:].isdecimal() and len(image_id) < 12 and self.validation_images:
            return self.validation_images.decode_cached(int(image_id[1:]))
        if image_id not in self.uploads:
            raise ImageNotFoundError("this image is no longer stored; upload it again")
        return self.uploads[image_id]

    def sample(self, count: int, seed: int = 0) -> list[StoredImage]:
        """Return up to `count` validation images; none if the shards are not available."""
        return self.validation_images.sample(count, seed) if self.validation_images else []

    def add_upload(self, content: bytes, name: str) -> StoredImage:
        """Decode and store an uploaded image.

        Raises UserError if the file is not an image, is corrupted or is too large.
        """
        display_name = " ".join(name.split())[:MAX_NAME_LENGTH] or "your image"
        stored_image = StoredImage(f"u{secrets.token_hex(8)}", display_name, decode_upload(content, self.sizes))
        while len(self.uploads) >= MAX_STORED_UPLOADS:
            self.uploads.popitem(last=False)
        self.uploads[stored_image.id] = stored_image
        return stored_image


def decode_upload(content: bytes, sizes: Sequence[int]) -> dict[int, Tensor]:
    """Decode the content of an image file into uint8 [3, S, S] for every S of `sizes`.

    The image is upright and cropped to the center square. Raises UserError if it cannot be used or is too large.
    """
    if len(content) > MAX_UPLOAD_BYTES:
        raise UserError(f"larger than {MAX_UPLOAD_BYTES >> 20} MiB; upload a smaller image")
    return read_square_images(content, sizes, MAX_UPLOAD_PIXELS)
