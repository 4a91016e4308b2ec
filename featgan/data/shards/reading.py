"""Reads of bytes at a position in the shards of a split."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featgan.errors import UserError
from featgan.system.open_file import OpenFile

MAX_OPEN_FILES = 256
"""Maximum number of shards that one process keeps open."""


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


def changed_shard_error(path: Path, problem: str) -> UserError:
    """Return the error for a shard that differs from the manifest."""
    return UserError(f"{path}: {problem}; copy it again or pack the images again with `featgan pack`")
