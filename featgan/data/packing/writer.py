"""The shard writer: the images and labels of one split as numbered WebDataset tar files, with their index."""

import os
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from featgan.data.packing.plan import PlannedImage, encode_json_line
from featgan.data.shards.index import ShardEntry, build_index, serialize_index
from featgan.data.shards.manifest import ShardFile, SplitManifest, SplitName
from featgan.system.files import atomic_write, sha256_of


class ShardWriter:
    """Writes the images of one split to numbered tar files with `images_per_shard` images each."""

    def __init__(self, folder: Path, split: SplitName, images_per_shard: int) -> None:
        self.folder = folder
        self.split = split
        self.images_per_shard = images_per_shard
        self.shards: list[ShardFile] = []
        self.entries: list[ShardEntry] = []
        self.file: BinaryIO | None = None
        self.offset = 0
        self.count = 0

    def add_image(self, item: PlannedImage, jpeg: bytes) -> None:
        """Append KEY.jpg and KEY.json to the current shard."""
        self.entries.append(ShardEntry(item.key, self.offset + tarfile.BLOCKSIZE, len(jpeg), item.labels))
        self.append_file(f"{item.key}.jpg", jpeg)
        self.append_file(f"{item.key}.json", encode_json_line(item.labels))
        self.count += 1
        if self.count == self.images_per_shard:
            self.close_shard()

    def append_file(self, name: str, data: bytes) -> None:
        """Append one file to the current shard, which is created if needed."""
        if self.file is None:
            self.file = self.shard_path.open("wb")
        self.offset += self.file.write(make_tar_member(name, data))

    @property
    def shard_path(self) -> Path:
        """Path of the current shard."""
        return self.folder / f"{self.split}-{len(self.shards):05d}.tar"

    def close_shard(self) -> None:
        """Close the current shard, if any, and record its size and hash."""
        if self.file is None:
            return
        self.file.write(b"\0" * (2 * tarfile.BLOCKSIZE))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        size = self.offset + 2 * tarfile.BLOCKSIZE
        self.shards.append(
            ShardFile(name=self.shard_path.name, count=self.count, bytes=size, sha256=sha256_of(self.shard_path))
        )
        self.file, self.offset, self.count = None, 0, 0

    def finish_split(
        self, classes: Sequence[str], attribute_names: Sequence[str], factor_names: Sequence[str]
    ) -> SplitManifest:
        """Close the last shard, write the index of the split, and return the manifest entry of the split."""
        self.close_shard()
        index = build_index(self.entries, attribute_names, factor_names)
        path = self.folder / f"{self.split}.index.npz"
        atomic_write(path, serialize_index(index))
        counts = Counter(index.expression.tolist())
        histogram = {name: counts[code] for code, name in enumerate(classes)}
        return SplitManifest(
            count=len(self.entries), classes=histogram, shards=tuple(self.shards), index_sha256=sha256_of(path)
        )


def make_tar_member(name: str, data: bytes) -> bytes:
    """Return the header, data and padding of a tar member without owner or time: equal content gives equal bytes."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    header.mode = 0o644
    padding = -len(data) % tarfile.BLOCKSIZE
    return header.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict") + data + b"\0" * padding
