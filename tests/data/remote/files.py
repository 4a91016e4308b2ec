"""Files that a node cache can fetch without a network, and a record of each download."""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from featgan.data.remote.node_cache import CacheItem
from featgan.system.open_file import OpenFile


@dataclass(frozen=True)
class StoredFile:
    """A file in a folder that stands for a server."""

    path: Path

    @property
    def redacted(self) -> str:
        return f"http://server/{self.path.name}"


@dataclass(frozen=True)
class Fetched:
    """Hash and size of a download."""

    sha256: str
    size: int


@dataclass
class FakeServer:
    """A folder of files; `log` contains one line per download, of all processes."""

    folder: Path
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = self.folder / "log"
        self.log.touch()

    def add(self, name: str, content: bytes) -> CacheItem:
        """Store a file and return its entry in a manifest."""
        (self.folder / name).write_bytes(content)
        return CacheItem(hashlib.sha256(content).hexdigest(), len(content), StoredFile(self.folder / name))

    def add_many(self, count: int, num_bytes: int) -> list[CacheItem]:
        """Store files of equal size and different content."""
        return [self.add(f"file-{index}", index.to_bytes(4) * (num_bytes // 4)) for index in range(count)]

    def downloads(self) -> list[str]:
        """Return the names of the downloaded files in order."""
        return self.log.read_text().splitlines()

    def fetch(self, source: StoredFile, target: BinaryIO, max_bytes: int, retry_seconds: float) -> Fetched:
        """Copy a file like `fetch_file`."""
        content = source.path.read_bytes()[: max_bytes + 1]
        with self.log.open("a") as log:
            log.write(f"{source.path.name}\n")
        target.write(content[:max_bytes])
        return Fetched(hashlib.sha256(content).hexdigest(), len(content))


def read_all(file: OpenFile) -> bytes:
    """Return the content of an open file."""
    return os.pread(file.descriptor, file.size, 0)


def cached_bytes(folder: Path) -> int:
    """Return the size of all files and partial files of a cache in bytes."""
    return sum(path.stat().st_size for name in ("objects", "partials") for path in (folder / name).iterdir())
