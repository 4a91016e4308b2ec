"""The images of one split: labels as arrays, and images by row."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from featgan.data.remote.shard_files import LocalFiles, ShardFiles
from featgan.data.shards.decoding import decode_jpegs, decode_square, is_decodable, read_jpeg_size
from featgan.data.shards.index import SplitIndex
from featgan.data.shards.index_checks import is_valid_position, max_image_bytes
from featgan.data.shards.manifest import SplitManifest, Transform
from featgan.data.shards.reading import ShardReader, changed_shard_error
from featgan.errors import UserError
from featgan.system.image_files import ImageFileError
from featgan.system.memory import choose_batch_size

IMAGES_PER_CALL = 64
"""Maximum number of images decoded in one call, which bounds memory use."""

INDEX_MISMATCH = "the index does not match the shards"
"""The problem of an index whose images are not inside their shards, or whose labels cannot be."""


class Split:
    """N images of one split; rows are in the order of the shards, and labels are arrays over rows."""

    def __init__(
        self,
        name: str,
        folder: Path,
        image_size: int,
        split_manifest: SplitManifest,
        index: SplitIndex,
        files: ShardFiles | None = None,
        transform: Transform | None = None,
    ) -> None:
        self.name = name
        self.image_size = image_size
        self.index = index
        self.transform = transform
        """How an image of a foreign tar becomes a square; None for packed images."""
        self.max_image_bytes = max_image_bytes(image_size, transform)
        self.shard_names = [shard.stem for shard in split_manifest.shards]
        """File names of the shards, without `.tar`."""
        self.shard_counts = [shard.count for shard in split_manifest.shards]
        self.shard_starts = np.cumsum([0, *self.shard_counts])
        """The first row of every shard, and N [S + 1]."""
        self.shard_bytes = [shard.bytes for shard in split_manifest.shards]
        self.index_path = folder / f"{name}.index.npz"
        self.reader = ShardReader(files or LocalFiles([folder / shard.name for shard in split_manifest.shards]))
        self.expression = index.expression
        self.valence = index.valence
        self.arousal = index.arousal
        self.attributes = index.attributes
        self.factors = index.factors

    def __len__(self) -> int:
        return len(self.index.keys)

    def keys_of(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the keys of images, text [n]."""
        return np.char.decode(self.index.keys[np.asarray(rows, np.int64)], "ascii", "backslashreplace")

    def shard_of(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the shard numbers of rows [n]."""
        return np.searchsorted(self.shard_starts, rows, side="right") - 1

    def read_jpeg(self, row: int) -> bytes:
        """Return the JPEG of an image, as stored."""
        return bytes(self.read_bytes(row))

    def read_bytes(self, row: int) -> bytearray:
        """Return the JPEG of an image as a bytearray, which saves a copy."""
        shard, offset, size = int(self.shard_of([row])[0]), int(self.index.offset[row]), int(self.index.size[row])
        # The index is mapped: it may have changed since it was checked.
        if not is_valid_position(offset, size, self.shard_bytes[shard], self.max_image_bytes):
            raise changed_shard_error(self.index_path, INDEX_MISMATCH)
        return self.reader.read(shard, offset, size)

    def decode(self, rows: Sequence[int] | np.ndarray, flipped: np.ndarray | None = None) -> Tensor:
        """Decode images as uint8 [n, 3, S, S], flipped horizontally where `flipped` [n] is true.

        Raises UserError, with the shard and the key, if an image cannot be decoded.
        """
        images = np.empty((len(rows), 3, self.image_size, self.image_size), np.uint8)
        images_per_call = choose_batch_size(self.image_size, IMAGES_PER_CALL)
        for start in range(0, len(rows), images_per_call):
            for position, image in enumerate(self.decode_chunk(rows[start : start + images_per_call]), start):
                # The decoder stores channels last in memory; numpy reorders them three times faster than torch.
                pixels = image.numpy()
                images[position] = pixels[:, :, ::-1] if flipped is not None and flipped[position] else pixels
        return torch.from_numpy(images)

    def decode_chunk(self, rows: Sequence[int] | np.ndarray) -> list[Tensor]:
        """Decode images as uint8 [3, S, S] each, in one call: each call costs a fifth of decoding an image."""
        if self.transform is not None:
            return [self.decode_foreign(int(row), self.transform) for row in rows]
        contents = [self.read_checked_jpeg(int(row)) for row in rows]
        try:
            return decode_jpegs(contents)
        except RuntimeError as error:
            corrupt_row = next(
                (row for row, content in zip(rows, contents, strict=True) if not is_decodable(content)), rows[0]
            )
            raise self.corrupt_image_error(int(corrupt_row), "the JPEG is corrupted") from error

    def decode_foreign(self, row: int, transform: Transform) -> Tensor:
        """Decode, crop and resize one image of a foreign tar as uint8 [3, S, S]."""
        try:
            return decode_square(bytes(self.read_bytes(row)), self.image_size, transform.crop)
        except ImageFileError as error:
            shard, key = self.reader.location(int(self.shard_of([row])[0])), self.keys_of([row])[0]
            raise UserError(f"{shard}: {key}: {error.reason}; index the tars again with --check-images") from error

    def read_checked_jpeg(self, row: int) -> bytearray:
        """Return the JPEG of an image. Raises UserError if its header contains another image size.

        The check runs before decoding, so that a forged header cannot make the decoder allocate gigabytes.
        """
        content = self.read_bytes(row)
        size = read_jpeg_size(content)
        if size != (self.image_size, self.image_size):
            actual = f"{size[1]} x {size[0]} pixels" if size else "not a JPEG"
            raise self.corrupt_image_error(
                row, f"{actual}, but {self.image_size} x {self.image_size} pixels were packed"
            )
        return content

    def corrupt_image_error(self, row: int, problem: str) -> UserError:
        """Return the error for an image that cannot be decoded."""
        shard, key = self.reader.location(int(self.shard_of([row])[0])), self.keys_of([row])[0]
        return UserError(f"{shard}: {key}.jpg: {problem}; pack the images again")
