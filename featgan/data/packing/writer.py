"""One split's images and labels as numbered WebDataset tars, with their index."""

import os
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from featgan.data.packing.plan import Item, json_bytes
from featgan.data.shards.index import Entry, build_index, index_bytes
from featgan.data.shards.manifest import ShardFile, SplitName, SplitPart
from featgan.system.files import sha256_of, write_whole


class ShardWriter:
    """Writes one split's images into numbered tars of `images_per_shard`."""

    def __init__(self, folder: Path, split: SplitName, images_per_shard: int) -> None:
        self.folder = folder
        self.split = split
        self.images_per_shard = images_per_shard
        self.shards: list[ShardFile] = []
        self.entries: list[Entry] = []
        self.file: BinaryIO | None = None
        self.offset = 0
        self.count = 0

    def add(self, item: Item, jpeg: bytes) -> None:
        """Append KEY.jpg and KEY.json."""
        self.entries.append(Entry(item.key, self.offset + tarfile.BLOCKSIZE, len(jpeg), item.labels))
        self.append(f"{item.key}.jpg", jpeg)
        self.append(f"{item.key}.json", json_bytes(item.labels))
        self.count += 1
        if self.count == self.images_per_shard:
            self.close_shard()

    def append(self, name: str, data: bytes) -> None:
        if self.file is None:
            self.file = self.path.open("wb")
        self.offset += self.file.write(tar_member(name, data))

    @property
    def path(self) -> Path:
        """Of the shard at hand."""
        return self.folder / f"{self.split}-{len(self.shards):05d}.tar"

    def close_shard(self) -> None:
        """End the shard at hand, if there is one."""
        if self.file is None:
            return
        self.file.write(b"\0" * (2 * tarfile.BLOCKSIZE))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        size = self.offset + 2 * tarfile.BLOCKSIZE
        self.shards.append(ShardFile(name=self.path.name, count=self.count, bytes=size, sha256=sha256_of(self.path)))
        self.file, self.offset, self.count = None, 0, 0

    def finish(self, classes: Sequence[str], attribute_names: Sequence[str], factor_names: Sequence[str]) -> SplitPart:
        """End the last shard and write the split's index."""
        self.close_shard()
        index = build_index(self.entries, attribute_names, factor_names)
        path = self.folder / f"{self.split}.index.npz"
        write_whole(path, index_bytes(index))
        counts = Counter(index.expression.tolist())
        histogram = {name: counts[code] for code, name in enumerate(classes)}
        return SplitPart(
            count=len(self.entries), classes=histogram, shards=tuple(self.shards), index_sha256=sha256_of(path)
        )


def tar_member(name: str, data: bytes) -> bytes:
    """Header, data and padding of a file without owner or time, so that equal content gives equal bytes."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    header.mode = 0o644
    padding = -len(data) % tarfile.BLOCKSIZE
    return header.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict") + data + b"\0" * padding
