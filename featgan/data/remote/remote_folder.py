"""Copies of the small files of a shard folder or feature cache behind a URL: its manifest, indexes and feature space.

The copies are in a folder of the node cache that is named by the content of the manifest. So processes and jobs share
them, and a new version of the data set gets new copies.
"""

import hashlib
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from featgan.data.remote.access import DataAccess
from featgan.data.remote.cache_folder import CACHE_REMEDY, exclusive_lock
from featgan.data.remote.fetching import fetch_file, read_small
from featgan.data.remote.node_cache import NodeCache, changed_file_error
from featgan.system.files import atomic_file, atomic_write, remove_folder, user_friendly_write_errors
from featgan.system.limits import MAX_JSON_BYTES
from featgan.system.locations import Location
from featgan.system.verified_hashes import first_modified_file

SETS_FOLDER = "sets"

MAX_AGE_SECONDS = 60 * 86_400
"""Copies that no command has opened for this time are removed."""


@dataclass(frozen=True)
class RemoteFolder:
    """A folder behind a URL with a manifest, and the folder on this node with the copies of its small files."""

    location: Location
    path: Path
    manifest: bytes
    cache: NodeCache
    retry_seconds: float

    @classmethod
    def open(cls, location: Location, manifest_name: str, access: DataAccess) -> Self:
        """Download the manifest, at every start, because it decides which files are used.

        Raises UserError if this fails.
        """
        content = read_small(location.join(manifest_name), MAX_JSON_BYTES, access.retry_seconds)
        cache = access.open_cache()
        path = cache.folder / SETS_FOLDER / hashlib.sha256(content).hexdigest()
        with user_friendly_write_errors(path, CACHE_REMEDY):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            atomic_write(path / manifest_name, content)
            remove_old_copies(path.parent)
        return cls(location, path, content, cache, access.retry_seconds)

    def copy_file(self, name: str, sha256: str, max_bytes: int) -> Path:
        """Return the copy of a file; download it if it is missing or damaged.

        Raises UserError if it does not have the hash, also in a second attempt, or if it is larger than `max_bytes` or
        than the cache may be: a server could name any size.
        """
        path = self.path / name
        with user_friendly_write_errors(self.path, CACHE_REMEDY), exclusive_lock(self.cache.locks / sha256):
            self.path.mkdir(mode=0o700, exist_ok=True)
            if not path.is_file() or first_modified_file(self.path, {name: sha256}, "files") is not None:
                self.download_file(path, sha256, max_bytes)
        return path

    def download_file(self, path: Path, sha256: str, max_bytes: int) -> None:
        """Download a file whose lock this process holds."""
        location = self.location.join(path.name)
        for _ in range(2):
            with suppress(ChangedFileError), atomic_file(path) as file:
                fetched = fetch_file(location, file, min(max_bytes, self.cache.max_bytes), self.retry_seconds)
                if fetched.sha256 != sha256:
                    raise ChangedFileError
                return
        raise changed_file_error(location, fetched.sha256, sha256)


class ChangedFileError(Exception):
    """A download does not have the hash in the manifest."""


def remove_old_copies(folder: Path) -> None:
    """Remove the copies that were not opened for a long time; a process that has opened a file can still read it."""
    for path in list(folder.iterdir()):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > MAX_AGE_SECONDS:
                remove_folder(path)


def folder_of(location: Location, manifest_name: str) -> Location:
    """Return the folder of a location, which is a folder or the manifest in it."""
    return location.parent if location.name == manifest_name else location
