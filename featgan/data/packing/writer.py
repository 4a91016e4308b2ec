"""The shard writer: the images and labels of one split as numbered WebDataset tar files, with their index."""

import os
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from webdataset.writer import TarWriter

from featgan.data.packing.plan import PlannedImage, encode_json_line
from featgan.data.shards.index import ShardEntry, build_index, serialize_index
from featgan.data.shards.manifest import ShardFile, SplitManifest, SplitName
from featgan.system.files import atomic_write, sha256_of


class ShardOutput:
    """The file of one shard. If writing was interrupted, it ignores what the tar library writes during its clean-up."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")
        self.has_failed = False

    def write(self, data: bytes) -> int:
        """Write bytes; an error is raised once."""
        if self.has_failed or self.file.closed:
            return len(data)
        try:
            return self.file.write(data)
        except OSError:
            self.has_failed = True
            raise

    def close(self, size: int) -> None:
        """Cut the file to `size` bytes, write it to the disk and close it."""
        self.file.flush()
        self.file.truncate(size)
        os.fsync(self.file.fileno())
        self.file.close()


class ShardWriter:
    """Writes the images of one split to numbered tar files with `images_per_shard` images each."""

    def __init__(self, folder: Path, split: SplitName, images_per_shard: int) -> None:
        self.folder = folder
        self.split = split
        self.images_per_shard = images_per_shard
        self.shards: list[ShardFile] = []
        self.entries: list[ShardEntry] = []
        self.output: ShardOutput | None = None
        self.count = 0

    def add_image(self, item: PlannedImage, jpeg: bytes) -> None:
        """Append KEY.jpg and KEY.json to the current shard, which is created if needed."""
        if self.output is None:
            self.output = ShardOutput(self.shard_path)
            self.tar = open_tar_writer(self.output)
        offset = self.tar.tarstream.offset + tarfile.BLOCKSIZE
        self.entries.append(ShardEntry(item.key, offset, len(jpeg), item.labels))
        self.tar.write({"__key__": item.key, "jpg": jpeg, "json": encode_json_line(item.labels)})
        self.tar.tarstream.members.clear()  # Otherwise memory grows with the number of images.
        self.count += 1
        if self.count == self.images_per_shard:
            self.close_shard()

    @property
    def shard_path(self) -> Path:
        """Path of the current shard."""
        return self.folder / f"{self.split}-{len(self.shards):05d}.tar"

    def close_shard(self) -> None:
        """Close the current shard, if any, and record its size and hash."""
        if self.output is None:
            return
        size = self.tar.tarstream.offset + 2 * tarfile.BLOCKSIZE
        self.tar.close()
        self.output.close(size)  # The library fills the last record; two empty blocks are enough.
        self.shards.append(
            ShardFile(name=self.shard_path.name, count=self.count, bytes=size, sha256=sha256_of(self.shard_path))
        )
        self.output, self.count = None, 0

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


def open_tar_writer(output: ShardOutput) -> TarWriter:
    """Return a writer for members without owner or time: equal content gives equal bytes."""
    return TarWriter(output, user="", group="", mode=0o644, mtime=0, encoder=False, compress=False)
