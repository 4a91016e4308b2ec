"""Keep the content of small files that are read repeatedly, until they change."""

from collections.abc import Callable
from functools import lru_cache, wraps
from pathlib import Path
from typing import TypeVar

Content = TypeVar("Content")

MAX_CACHED_FILES = 20_000
"""Number of files whose content one function keeps; 200 runs with 100 evaluations each."""


def cache_by_version(read: Callable[[Path], Content]) -> Callable[[Path], Content]:
    """Return `read` with a cache: a file is read again only after its time, size or inode has changed.

    The content must not be modified. If there is no such file, `read` is not cached.
    """

    @lru_cache(MAX_CACHED_FILES)
    def read_version(path: Path, version: tuple[int, ...]) -> Content:
        return read(path)

    @wraps(read)
    def read_cached(path: Path) -> Content:
        try:
            status = path.stat()
        except OSError:
            return read(path)
        return read_version(path, (status.st_mtime_ns, status.st_size, status.st_ino))

    return read_cached
