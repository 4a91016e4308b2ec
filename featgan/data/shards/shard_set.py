"""Reading packed shards: any image by its row, labels as arrays, and checks against the manifest."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from featgan.data.shards.index import Entry, Index, build_index, index_bytes, load_index, scan_shard
from featgan.data.shards.manifest import Manifest, ShardFile, SplitPart, load_manifest
from featgan.errors import UserError
from featgan.system.files import sha256_of, write_whole
from featgan.system.progress import console, track
from featgan.system.verified_hashes import first_changed

MAX_OPEN_FILES = 256
"""Shards kept open by one process."""

AT_ONCE = 64
"""Images decoded by one call, which bounds memory."""

START_OF_FRAME = frozenset({0xC0, 0xC1, 0xC2})
"""JPEG markers of the segment that holds the image's size: baseline, extended, progressive."""


class ShardSet:
    """A folder written by `featgan pack`."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.image_size = manifest.image_size
        self.classes = manifest.classes
        self.attribute_names = manifest.attribute_names
        self.factor_names = manifest.factor_names
        self.fingerprint = manifest.fingerprint
        self.parts = manifest
        self.splits: dict[str, Split] = {}

    @classmethod
    def open(cls, path: Path | str) -> "ShardSet":
        """Read the manifest and compare every shard's size with it; `verify` compares contents.

        UserError: not a shard folder, or a shard is missing, cut off or of another size than when it was packed.
        """
        folder = Path(path)
        manifest = load_manifest(folder)
        for part in manifest.splits.values():
            for shard in part.shards:
                check_size(folder / shard.name, shard)
        return cls(folder, manifest)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest as plain values."""
        return self.parts.model_dump(mode="json")

    @property
    def split_names(self) -> tuple[str, ...]:
        return tuple(self.parts.splits)

    def split(self, name: str) -> "Split":
        """`train` or `validation`; UserError when the shards hold no such split."""
        if name not in self.splits:
            part = next((part for known, part in self.parts.splits.items() if known == name), None)
            if part is None:
                known = ", ".join(self.split_names)
                raise UserError(f"{self.path}: no split {name!r}; the shards hold {known}")
            self.splits[name] = Split(name, self, part, open_index(self, name, part))
        return self.splits[name]

    def verify(self) -> None:
        """Hash every shard not found whole before; UserError names the first that changed since it was packed."""
        hashes = {shard.name: shard.sha256 for part in self.parts.splits.values() for shard in part.shards}
        path = first_changed(self.path, hashes, "shards")
        if path is not None:
            raise changed(path, "its content is not what was packed")


def check_size(path: Path, shard: ShardFile) -> None:
    """UserError unless the shard is there with the size it was packed with."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise changed(path, "the shard is missing") from None
    if size < shard.bytes:
        raise changed(path, f"the shard is cut off, {size} of {shard.bytes} bytes")
    if size > shard.bytes:
        raise changed(path, f"the shard has {size} bytes, not {shard.bytes}")


def changed(path: Path, what: str) -> UserError:
    return UserError(f"{path}: {what}; copy it again or pack the images again with `featgan pack`")


def open_index(shards: ShardSet, name: str, part: SplitPart) -> Index:
    """The split's index, rebuilt from the tars when it is missing or is not theirs."""
    path = shards.path / f"{name}.index.npz"
    current = path.is_file() and sha256_of(path) == part.index_sha256
    index = load_index(path) if current else rebuild_index(shards, part, path)
    limits = np.repeat([shard.bytes for shard in part.shards], [shard.count for shard in part.shards])
    columns = (index.attributes.shape[1], index.factors.shape[1])
    if columns != (len(shards.attribute_names), len(shards.factor_names)) or not inside(index, limits):
        raise changed(path, "the index does not fit the shards")
    return index


def inside(index: Index, limits: np.ndarray) -> bool:
    """Whether there is one image for each limit [N], the size of its shard, and each lies within it."""
    if len(index.keys) != len(limits):
        return False
    return bool(((index.offset >= 0) & (index.size > 0) & (index.offset + index.size <= limits)).all())


def rebuild_index(shards: ShardSet, part: SplitPart, path: Path) -> Index:
    """Read every tar of a split and write its index again; UserError when the tars are not those of the manifest."""
    entries: list[Entry] = []
    for shard in track(part.shards, f"rebuilding {path.name}", unit="shards"):
        found = list(scan_shard(shards.path / shard.name))
        if len(found) != shard.count:
            raise changed(shards.path / shard.name, f"the shard holds {len(found)} of {shard.count} images")
        entries += found
    try:
        index = build_index(entries, shards.attribute_names, shards.factor_names)
    except (TypeError, ValueError, OverflowError) as error:
        raise changed(path, f"the shards hold labels that are no numbers ({error})") from error
    try:
        write_whole(path, index_bytes(index))
    except OSError as error:
        console.print(f"{path}: not kept ({error.strerror}); it will be rebuilt at every start")
    return index


class OpenFile:
    """A file open for reading, closed when nobody reads it any more."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class ShardReader:
    """Bytes at a place in a shard; files are opened at first use and never travel to another process by pickling.

    Reads carry their own position, so that threads and forked processes may share the open files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self.files: dict[int, OpenFile] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "files": {}}

    def read(self, shard: int, offset: int, size: int) -> bytearray:
        """`size` bytes of shard number `shard`; UserError when it ends before."""
        content = bytearray(size)
        file = self.file(shard)
        if os.preadv(file.descriptor, [content], offset) != size:
            raise changed(self.paths[shard], "the shard ends too early")
        return content

    def file(self, shard: int) -> OpenFile:
        """The open file; the longest open is let go where there are too many, and another thread may still read it."""
        found = self.files.get(shard)
        if found is None:
            too_many = max(0, len(self.files) + 1 - MAX_OPEN_FILES)
            for longest in list(self.files)[:too_many]:
                self.files.pop(longest, None)
            try:
                found = self.files[shard] = OpenFile(self.paths[shard])
            except FileNotFoundError:
                raise changed(self.paths[shard], "the shard is missing") from None
        return found


class Split:
    """N images of one split; rows are in the shards' order, and the labels are arrays over rows."""

    def __init__(self, name: str, shards: ShardSet, part: SplitPart, index: Index) -> None:
        self.name = name
        self.image_size = shards.image_size
        self.index = index
        self.shard_names = [shard.stem for shard in part.shards]
        """File names of the shards without `.tar`."""
        self.shard_counts = [shard.count for shard in part.shards]
        self.shard = np.repeat(np.arange(len(part.shards)), self.shard_counts)
        """The shard of every row [N]."""
        self.reader = ShardReader([shards.path / shard.name for shard in part.shards])
        self.expression = index.expression
        self.valence = index.valence
        self.arousal = index.arousal
        self.attributes = index.attributes
        self.factors = index.factors

    def __len__(self) -> int:
        return len(self.index.keys)

    @cached_property
    def keys(self) -> np.ndarray:
        """Names of the images, text [N]."""
        return self.index.keys.astype(np.str_)

    def read_jpeg(self, row: int) -> bytes:
        """The image as stored."""
        return bytes(self.read(row))

    def read(self, row: int) -> bytearray:
        return self.reader.read(int(self.shard[row]), int(self.index.offset[row]), int(self.index.size[row]))

    def decode(self, rows: Sequence[int] | np.ndarray, mirrored: np.ndarray | None = None) -> Tensor:
        """Images as uint8 [n, 3, S, S], mirrored where `mirrored` [n] says so.

        UserError names shard and key of an image that cannot be decoded.
        """
        images = np.empty((len(rows), 3, self.image_size, self.image_size), np.uint8)
        for start in range(0, len(rows), AT_ONCE):
            for place, image in enumerate(self.decode_few(rows[start : start + AT_ONCE]), start):
                # The decoder's pixels lie channel after channel: numpy sorts them three times faster than torch.
                pixels = image.numpy()
                images[place] = pixels[:, :, ::-1] if mirrored is not None and mirrored[place] else pixels
        return torch.from_numpy(images)

    def decode_few(self, rows: Sequence[int] | np.ndarray) -> list[Tensor]:
        """Each uint8 [3, S, S]; one call for all, since a call of the decoder by itself costs a fifth of its work."""
        contents = [self.read_checked(int(row)) for row in rows]
        try:
            return decode_all(contents)
        except RuntimeError as error:
            damaged = next((row for row, content in zip(rows, contents, strict=True) if not decodes(content)), rows[0])
            raise self.bad_image(int(damaged), "the JPEG is damaged") from error

    def read_checked(self, row: int) -> bytearray:
        """The JPEG; its size is looked at before it is decoded, so that a forged header cannot ask for gigabytes."""
        content = self.read(row)
        size = jpeg_size(content)
        if size != (self.image_size, self.image_size):
            found = f"{size[1]} x {size[0]} pixels" if size else "no JPEG"
            raise self.bad_image(row, f"{found} where {self.image_size} x {self.image_size} was packed")
        return content

    def bad_image(self, row: int, what: str) -> UserError:
        shard = self.reader.paths[int(self.shard[row])]
        return UserError(f"{shard}: {self.index.keys[row].decode()}.jpg: {what}; pack the images again")


def decode_all(contents: Sequence[bytearray]) -> list[Tensor]:
    """JPEGs => uint8 [3, H, W] each; RuntimeError when one is damaged."""
    files = [torch.frombuffer(content, dtype=torch.uint8) for content in contents]
    images: list[Tensor] = decode_jpeg(files, mode=ImageReadMode.RGB) if files else []
    return images


def decodes(content: bytearray) -> bool:
    try:
        decode_all([content])
    except RuntimeError:
        return False
    return True


def jpeg_size(content: bytearray) -> tuple[int, int] | None:
    """(height, width) out of a JPEG's header; None when it has none."""
    if content[:2] != b"\xff\xd8":
        return None
    place = 2
    while place + 9 <= len(content) and content[place] == 0xFF:
        if content[place + 1] in START_OF_FRAME:
            height, width = content[place + 5 : place + 7], content[place + 7 : place + 9]
            return int.from_bytes(height), int.from_bytes(width)
        place += 2 + int.from_bytes(content[place + 2 : place + 4])
    return None
