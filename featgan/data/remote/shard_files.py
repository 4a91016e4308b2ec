"""The files of a split or of a feature cache, one for each shard: on a disk, or in the cache of the node."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from featgan.data.remote.node_cache import CacheItem, NodeCache
from featgan.system.open_file import OpenFile


class ShardFiles(Protocol):
    """Numbered files that are opened for reading."""

    def open(self, number: int) -> OpenFile:
        """Open a file. Raises FileNotFoundError if it is missing, and UserError if it cannot be downloaded."""

    def fetch(self, number: int) -> None:
        """Download a file ahead of its use. Raises UserError if this fails."""

    def size(self, number: int) -> int:
        """Return the size of a file in bytes. Raises FileNotFoundError if it is missing."""

    def location(self, number: int) -> str:
        """Return the path or URL of a file, for messages."""

    def items(self) -> Sequence[CacheItem]:
        """Return the files that are read through the cache of the node, in order; empty if none are."""


class LocalFiles:
    """Files that are read where they are."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def open(self, number: int) -> OpenFile:
        return OpenFile(self.paths[number])

    def fetch(self, number: int) -> None:
        """Do nothing, since the file is here."""

    def size(self, number: int) -> int:
        return self.paths[number].stat().st_size

    def location(self, number: int) -> str:
        return str(self.paths[number])

    def items(self) -> Sequence[CacheItem]:
        return ()


class CachedFiles:
    """Files that are copied to the cache of the node when they are opened for the first time."""

    def __init__(self, cache: NodeCache, items: Sequence[CacheItem]) -> None:
        self.cache = cache
        self.cache_items = list(items)

    def open(self, number: int) -> OpenFile:
        return self.cache.open(self.cache_items[number])

    def fetch(self, number: int) -> None:
        self.cache.fetch_item(self.cache_items[number], wait=False)

    def size(self, number: int) -> int:
        return self.cache_items[number].bytes

    def location(self, number: int) -> str:
        return self.cache_items[number].source.redacted

    def items(self) -> Sequence[CacheItem]:
        return self.cache_items
