"""Reading of packed shards: images by row, labels as arrays, and checks against the manifest."""

import logging
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from featgan.data.shards.index import ShardEntry, SplitIndex, build_index, load_index, scan_shard, serialize_index
from featgan.data.shards.manifest import ShardFile, ShardManifest, SplitManifest, load_shard_manifest
from featgan.errors import UserError
from featgan.system.files import atomic_write, sha256_of
from featgan.system.limits import MAX_JPEG_BYTES_PER_PIXEL, MAX_JPEG_HEADER_BYTES
from featgan.system.memory import choose_batch_size
from featgan.system.progress import track_progress
from featgan.system.verified_hashes import first_modified_file

logger = logging.getLogger(__name__)

MAX_OPEN_FILES = 256
"""Maximum number of shards that one process keeps open."""

IMAGES_PER_CALL = 64
"""Maximum number of images decoded in one call, which bounds memory use."""

START_OF_FRAME_MARKERS = frozenset({0xC0, 0xC1, 0xC2})
"""JPEG markers of the segment that contains the image size: baseline, extended, progressive."""

NO_VALIDATION_PROBLEM = "no validation split, which `featgan evaluate` needs, and `featgan render` without --images"
NO_VALIDATION_REMEDY = "pack the images again to another folder; packing creates a validation split by default"


class ShardSet:
    """A folder written by `featgan pack`."""

    def __init__(self, path: Path, manifest: ShardManifest) -> None:
        self.path = path
        self.image_size = manifest.image_size
        self.classes = manifest.classes
        self.attribute_names = manifest.attribute_names
        self.factor_names = manifest.factor_names
        self.fingerprint = manifest.fingerprint
        self.manifest = manifest
        self.splits: dict[str, Split] = {}

    @classmethod
    def open(cls, path: Path | str) -> "ShardSet":
        """Open a shard folder: read its manifest and check the size of every shard; `verify` also checks the content.

        Raises UserError if the folder is not a shard folder, or if a shard is missing or has the wrong size.
        """
        folder = Path(path)
        manifest = load_shard_manifest(folder)
        for split in manifest.splits.values():
            for shard in split.shards:
                check_shard_size(folder / shard.name, shard)
        return cls(folder, manifest)

    @property
    def has_validation(self) -> bool:
        """Whether there are validation images, which evaluations, reports and the interactive page show."""
        return "validation" in self.manifest.splits

    @property
    def split_names(self) -> tuple[str, ...]:
        return tuple(self.manifest.splits)

    def get_split(self, name: str) -> "Split":
        """Return the split "train" or "validation". Raises UserError if the shards do not contain it."""
        if name not in self.splits:
            manifests = self.manifest.splits.items()
            split_manifest = next((manifest for split_name, manifest in manifests if split_name == name), None)
            if split_manifest is None and name == "validation":
                raise UserError(f"{self.path}: {NO_VALIDATION_PROBLEM}; {NO_VALIDATION_REMEDY}")
            if split_manifest is None:
                raise UserError(f"{self.path}: no split {name!r}; the shards contain {', '.join(self.split_names)}")
            self.splits[name] = Split(name, self, split_manifest, open_split_index(self, name, split_manifest))
        return self.splits[name]

    def verify(self) -> None:
        """Check the sha256 of every shard that was not verified before. Raises UserError for the first mismatch."""
        hashes = {shard.name: shard.sha256 for split in self.manifest.splits.values() for shard in split.shards}
        path = first_modified_file(self.path, hashes, "shards")
        if path is not None:
            raise changed_shard_error(path, "its checksum does not match")


def check_shard_size(path: Path, shard: ShardFile) -> None:
    """Raise UserError if the shard is missing or does not have the size in the manifest."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise changed_shard_error(path, "the shard is missing") from None
    if size < shard.bytes:
        raise changed_shard_error(path, f"the shard is truncated, {size} of {shard.bytes} bytes")
    if size > shard.bytes:
        raise changed_shard_error(path, f"the shard has {size} bytes, not {shard.bytes}")


def changed_shard_error(path: Path, problem: str) -> UserError:
    """Return the error for a shard that differs from the manifest."""
    return UserError(f"{path}: {problem}; copy it again or pack the images again with `featgan pack`")


def open_split_index(shards: ShardSet, name: str, split_manifest: SplitManifest) -> SplitIndex:
    """Return the index of a split; it is rebuilt from the tar files if it is missing or does not match the manifest."""
    path = shards.path / f"{name}.index.npz"
    current = path.is_file() and sha256_of(path) == split_manifest.index_sha256
    index = load_index(path) if current else rebuild_index(shards, split_manifest, path)
    limits = np.repeat(
        [shard.bytes for shard in split_manifest.shards], [shard.count for shard in split_manifest.shards]
    )
    if not has_valid_labels(index, shards) or not is_within_shards(index, limits, shards.image_size):
        raise changed_shard_error(path, "the index does not match the shards")
    return index


def has_valid_labels(index: SplitIndex, shards: ShardSet) -> bool:
    """Return whether the index has one column per attribute and factor, and only values that a label can have."""
    columns = (index.attributes.shape[1], index.factors.shape[1])
    if columns != (len(shards.attribute_names), len(shards.factor_names)):
        return False
    has_classes = (index.expression >= -1) & (index.expression < len(shards.classes))
    has_attributes = (index.attributes >= -1) & (index.attributes <= 1)
    has_infinities = any(np.isinf(values).any() for values in (index.valence, index.arousal, index.factors))
    return bool(has_classes.all() and has_attributes.all() and not has_infinities)


def is_within_shards(index: SplitIndex, limits: np.ndarray, image_size: int) -> bool:
    """Return whether the index has N images, each inside its shard and not larger than a JPEG of `image_size` can be.

    `limits` [N] are the sizes of the shards in bytes.
    """
    if len(index.keys) != len(limits):
        return False
    max_bytes = MAX_JPEG_HEADER_BYTES + MAX_JPEG_BYTES_PER_PIXEL * image_size**2
    is_plausible = (index.offset >= 0) & (index.size > 0) & (index.size <= max_bytes)
    # The difference cannot overflow, whereas offset + size can.
    return bool((is_plausible & (index.size <= limits - index.offset)).all())


def rebuild_index(shards: ShardSet, split_manifest: SplitManifest, path: Path) -> SplitIndex:
    """Rebuild the index of a split from its tar files and save it.

    Raises UserError if the tar files do not match the manifest.
    """
    entries: list[ShardEntry] = []
    for shard in track_progress(split_manifest.shards, f"rebuilding {path.name}", unit="shards"):
        shard_entries = list(scan_shard(shards.path / shard.name))
        if len(shard_entries) != shard.count:
            raise changed_shard_error(
                shards.path / shard.name, f"the shard contains {len(shard_entries)} of {shard.count} images"
            )
        entries += shard_entries
    try:
        index = build_index(entries, shards.attribute_names, shards.factor_names)
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise changed_shard_error(path, f"the shards contain labels that are not numbers ({error})") from error
    try:
        atomic_write(path, serialize_index(index))
    except OSError as error:
        logger.warning(f"{path}: not saved ({error.strerror}); it will be rebuilt at every start")
    return index


class OpenFile:
    """A file open for reading; it is closed when the last reference is deleted."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class ShardReader:
    """Reads bytes at a position in a shard. Files are opened on first use and are not pickled.

    Each read passes its own position, so threads and forked processes can share the open files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self.files: dict[int, OpenFile] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "files": {}}

    def read(self, shard: int, offset: int, size: int) -> bytearray:
        """Return `size` bytes of shard number `shard`. Raises UserError if the file ends too early."""
        content = bytearray(size)
        file = self.get_file(shard)
        if os.preadv(file.descriptor, [content], offset) != size:
            raise changed_shard_error(self.paths[shard], "the shard ends too early")
        return content

    def get_file(self, shard: int) -> OpenFile:
        """Return the open file of a shard.

        If too many files are open, the oldest is dropped; it is closed when no other thread reads it.
        """
        open_file = self.files.get(shard)
        if open_file is None:
            num_excess = max(0, len(self.files) + 1 - MAX_OPEN_FILES)
            for oldest in list(self.files)[:num_excess]:
                self.files.pop(oldest, None)
            try:
                open_file = self.files[shard] = OpenFile(self.paths[shard])
            except FileNotFoundError:
                raise changed_shard_error(self.paths[shard], "the shard is missing") from None
        return open_file


class Split:
    """N images of one split; rows are in the order of the shards, and labels are arrays over rows."""

    def __init__(self, name: str, shards: ShardSet, split_manifest: SplitManifest, index: SplitIndex) -> None:
        self.name = name
        self.image_size = shards.image_size
        self.index = index
        self.shard_names = [shard.stem for shard in split_manifest.shards]
        """File names of the shards, without `.tar`."""
        self.shard_counts = [shard.count for shard in split_manifest.shards]
        self.shard_of_row = np.repeat(np.arange(len(split_manifest.shards)), self.shard_counts)
        """The shard number of every row [N]."""
        self.reader = ShardReader([shards.path / shard.name for shard in split_manifest.shards])
        self.expression = index.expression
        self.valence = index.valence
        self.arousal = index.arousal
        self.attributes = index.attributes
        self.factors = index.factors

    def __len__(self) -> int:
        return len(self.index.keys)

    @cached_property
    def keys(self) -> np.ndarray:
        """The image keys, text [N]."""
        return self.index.keys.astype(np.str_)

    def read_jpeg(self, row: int) -> bytes:
        """Return the JPEG of an image, as stored."""
        return bytes(self.read_bytes(row))

    def read_bytes(self, row: int) -> bytearray:
        """Return the JPEG of an image as a bytearray, which saves a copy."""
        return self.reader.read(int(self.shard_of_row[row]), int(self.index.offset[row]), int(self.index.size[row]))

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
        contents = [self.read_checked_jpeg(int(row)) for row in rows]
        try:
            return decode_jpegs(contents)
        except RuntimeError as error:
            corrupt_row = next(
                (row for row, content in zip(rows, contents, strict=True) if not is_decodable(content)), rows[0]
            )
            raise self.corrupt_image_error(int(corrupt_row), "the JPEG is corrupted") from error

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
        shard = self.reader.paths[int(self.shard_of_row[row])]
        return UserError(f"{shard}: {self.index.keys[row].decode()}.jpg: {problem}; pack the images again")


def decode_jpegs(contents: Sequence[bytearray]) -> list[Tensor]:
    """Decode JPEGs as uint8 [3, H, W] each. Raises RuntimeError if one is corrupted."""
    files = [torch.frombuffer(content, dtype=torch.uint8) for content in contents]
    images: list[Tensor] = decode_jpeg(files, mode=ImageReadMode.RGB) if files else []
    return images


def is_decodable(content: bytearray) -> bool:
    """Return whether a JPEG can be decoded."""
    try:
        decode_jpegs([content])
    except RuntimeError:
        return False
    return True


def read_jpeg_size(content: bytearray) -> tuple[int, int] | None:
    """Return (height, width) from the header of a JPEG, or None if there is no such header."""
    if content[:2] != b"\xff\xd8":
        return None
    position = 2
    while position + 9 <= len(content) and content[position] == 0xFF:
        if content[position + 1] in START_OF_FRAME_MARKERS:
            height, width = content[position + 5 : position + 7], content[position + 7 : position + 9]
            return int.from_bytes(height), int.from_bytes(width)
        position += 2 + int.from_bytes(content[position + 2 : position + 4])
    return None
