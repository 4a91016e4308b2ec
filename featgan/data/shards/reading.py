"""Reads of bytes at a position in the shards of a split."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from featgan.data.remote.shard_files import ShardFiles
from featgan.errors import UserError
from featgan.system.open_file import OpenFile

MAX_OPEN_FILES = 256
"""Maximum number of shards that one process keeps open."""


class ShardReader:
    """Reads bytes at a position in a shard. Files are opened on first use and are not pickled.

    Each read passes its own position, so threads and forked processes can share the open files.
    """

    def __init__(self, shard_files: ShardFiles) -> None:
        self.shard_files = shard_files
        self.files: dict[int, OpenFile] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"shard_files": self.shard_files, "files": {}}

    def read(self, shard: int, offset: int, size: int) -> bytearray:
        """Return `size` bytes of shard number `shard`. Raises UserError if the file ends too early."""
        content = bytearray(size)
        file = self.get_file(shard)
        if os.preadv(file.descriptor, [content], offset) != size:
            raise changed_shard_error(self.location(shard), "the shard ends too early")
        return content

    def get_file(self, shard: int) -> OpenFile:
        """Return the open file of a shard.

        If too many files are open, the oldest is dropped; it is closed when no other thread reads it. Files that were
        removed from the cache of the node are dropped too, so that their space becomes free.
        """
        open_file = self.files.get(shard)
        if open_file is None:
            num_excess = max(0, len(self.files) + 1 - MAX_OPEN_FILES)
            for oldest in list(self.files)[:num_excess]:
                self.files.pop(oldest, None)
            self.drop_removed_files()
            try:
                open_file = self.files[shard] = self.shard_files.open(shard)
            except FileNotFoundError:
                raise changed_shard_error(self.location(shard), "the shard is missing") from None
        return open_file

    def drop_removed_files(self) -> None:
        """Drop the files that were removed from the cache of the node."""
        if self.shard_files.items():
            for shard, file in list(self.files.items()):
                if file.is_removed:
                    self.files.pop(shard, None)

    def retain(self, shards: Collection[int]) -> None:
        """Close the files of all other shards if they are in the cache of the node, so that it can remove them."""
        if self.shard_files.items():
            for shard in set(self.files) - set(shards):
                self.files.pop(shard, None)

    def location(self, shard: int) -> str:
        """Return the path or URL of a shard, for messages."""
        return self.shard_files.location(shard)


def changed_shard_error(path: Path | str, problem: str) -> UserError:
    """Return the error for a shard that differs from the manifest."""
    return UserError(f"{path}: {problem}; copy it again, or run `featgan pack` or `featgan index` again")
