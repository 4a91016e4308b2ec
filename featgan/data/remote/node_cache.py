"""A cache of whole files on the local disk of a node, shared by all processes and jobs of a user.

A file is stored under its sha256, which a manifest contains. So equal files of different data sets are stored once, and
a file that has changed at its source is noticed when it arrives. A process locks a file while it downloads it; the
others wait and then open the same copy. A killed process leaves a partial file without a lock, which the next process
removes. The files and partial files together are never larger than the limit of the cache.

A file that a process has opened stays readable after it was removed from the cache, so a process never has to announce
what it reads.
"""

import errno
import io
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from featgan.data.remote.cache_folder import (
    CACHE_REMEDY,
    GIGABYTE,
    create_cache_folder,
    default_cache_bytes,
    exclusive_lock,
    lock_descriptor,
    open_lock_file,
)
from featgan.data.remote.plans import CachedObject, PlannedUse, merge_plans, read_plan, removal_order, write_plan
from featgan.errors import UserError
from featgan.system.files import name_file_in_errors, user_friendly_write_errors
from featgan.system.open_file import OpenFile

FULL_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT)

NO_ALLOCATION_ERRORS = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
"""Errors of a file system on which space cannot be reserved."""

ROOM_INTERVAL = 0.2
"""Seconds between two attempts to find room while other processes download."""


class FileSource(Protocol):
    """Where a file is; see `Location`."""

    @property
    def redacted(self) -> str:
        """The path or URL without a password, for messages."""


class FetchResult(Protocol):
    """Hash and size of what was downloaded."""

    @property
    def sha256(self) -> str: ...

    @property
    def size(self) -> int: ...


FetchFile = Callable[[Any, BinaryIO, int, float], FetchResult]
"""`fetch_file`: it receives the source, the file to write, the maximum size in bytes, and the seconds to retry."""


@dataclass(frozen=True)
class CacheItem:
    """A file that can be cached: its sha256 and size in bytes in the manifest, and where it is."""

    sha256: str
    bytes: int
    source: FileSource


class NodeCache:
    """Files by their sha256 in a folder of this node. The limit is in bytes; 0 means 80 % of the free space."""

    def __init__(self, folder: Path, fetch: FetchFile, max_bytes: int = 0, retry_seconds: float = 900.0) -> None:
        """Open or create the cache. Raises UserError if the folder cannot be written or belongs to another user."""
        self.folder = folder
        self.objects, self.partials = folder / "objects", folder / "partials"
        self.locks, self.users = folder / "locks", folder / "users"
        self.retry_seconds = retry_seconds
        self.fetch = fetch
        self.num_downloads = 0
        create_cache_folder(folder)
        with user_friendly_write_errors(folder, CACHE_REMEDY):
            for subfolder in (self.objects, self.partials, self.locks, self.users):
                subfolder.mkdir(mode=0o700, exist_ok=True)
            with self.lock_cache():
                self.max_bytes = max_bytes or default_cache_bytes(folder, self.used_bytes())
                self.user, self.user_lock = self.register_user()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "user_lock": None}

    def __del__(self) -> None:
        if getattr(self, "user_lock", None) is not None:
            os.close(self.user_lock)

    @cached_property
    def description(self) -> str:
        """The folder and the limit, for messages."""
        return f"{self.folder} (at most {format_gigabytes(self.max_bytes)} GB)"

    def open(self, item: CacheItem) -> OpenFile:
        """Return a file of the cache, open for reading; download it first if it is missing.

        Raises UserError if it cannot be downloaded, if it has changed at its source, or if there is no room for it.
        """
        file = self.open_object(item)
        if file is not None:
            return file
        with self.write_errors(), self.lock_item(item):
            file = self.open_object(item) or self.download(item, is_needed_now=True)
        assert file is not None
        return file

    def fetch_item(self, item: CacheItem, wait: bool = True) -> bool:
        """Download a file if it is missing, and return whether the cache contains it.

        Without `wait`, the file is fetched ahead of need: nothing is done if another process is downloading it, or if
        there is no room without removing pinned files.
        """
        if self.contains(item):
            return True
        with self.write_errors(), self.lock_item(item, wait) as is_locked:
            return is_locked and (self.contains(item) or self.download(item, is_needed_now=wait) is not None)

    def contains(self, item: CacheItem) -> bool:
        """Return whether the cache contains a file of this sha256 and size."""
        try:
            return (self.objects / item.sha256).stat().st_size == item.bytes
        except OSError:
            return False

    def open_object(self, item: CacheItem) -> OpenFile | None:
        """Open a cached file; None if it is missing or does not have its size."""
        path = self.objects / item.sha256
        try:
            file = OpenFile(path)
        except FileNotFoundError:
            return None
        if file.size != item.bytes:
            path.unlink(missing_ok=True)
            return None
        with suppress(OSError):
            os.utime(file.descriptor)  # the time of the last use, for the choice of the file that is removed
        return file

    def download(self, item: CacheItem, is_needed_now: bool) -> OpenFile | None:
        """Download a file whose lock this process holds; None if it can wait and there is no room.

        Raises UserError if its content is not that of the manifest, also in a second attempt.
        """
        for _ in range(2):
            with self.reserve_room(item, is_needed_now) as partial:
                if partial is None:
                    return None
                fetched = self.fetch(item.source, partial, item.bytes, self.retry_seconds)
                self.num_downloads += 1
                if (fetched.sha256, fetched.size) == (item.sha256, item.bytes):
                    return self.add_object(item, partial)
        raise changed_file_error(item.source, fetched.sha256, item.sha256)

    def add_object(self, item: CacheItem, partial: BinaryIO) -> OpenFile:
        """Give a complete partial file its final name, and return it open for reading."""
        path = self.partials / item.sha256
        with name_file_in_errors(path):
            partial.flush()
            os.fdatasync(partial.fileno())
        file = OpenFile(path)
        with self.lock_cache():  # otherwise, another process that adds up the sizes could miss the file
            path.replace(self.objects / item.sha256)
        return file

    @contextmanager
    def reserve_room(self, item: CacheItem, is_needed_now: bool) -> Iterator[BinaryIO | None]:
        """Yield a partial file with the space of an item, whose lock this process holds; it is removed at the end.

        Yields None if there is no room and the item is not needed now. Other files are removed to make room: those in
        no plan, then those whose next use is the farthest. Raises UserError if the item is larger than the cache.
        """
        if item.bytes > self.max_bytes:
            raise UserError(
                f"{item.source.redacted}: has {format_gigabytes(item.bytes)} GB, but the cache {self.folder} may "
                f"contain only {format_gigabytes(self.max_bytes)} GB; free some space or set a larger dataset.cache_gb"
            )
        path = self.partials / item.sha256
        file = self.create_partial(item, path, is_needed_now)
        while file is None and is_needed_now:
            time.sleep(ROOM_INTERVAL)  # the room is taken by downloads of other processes
            file = self.create_partial(item, path, is_needed_now)
        try:
            yield file
        finally:
            if file is not None:
                file.close()
                path.unlink(missing_ok=True)

    def create_partial(self, item: CacheItem, path: Path, is_needed_now: bool) -> BinaryIO | None:
        """Make room for an item and create its partial file with all of its space; None if there is no room now."""
        with self.lock_cache():
            self.remove_dead_partials(item)
            if not self.remove_objects(self.used_bytes() + item.bytes - self.max_bytes, is_needed_now):
                return None
            while True:
                try:
                    return create_file_of_size(path, item.bytes)
                except OSError as error:
                    path.unlink(missing_ok=True)
                    # Another program has filled the disk.
                    if error.errno not in FULL_DISK_ERRORS or not self.remove_any_objects(item.bytes, is_needed_now):
                        raise

    def remove_objects(self, num_bytes: int, include_pinned: bool) -> bool:
        """Remove cached files of at least `num_bytes` together; return False, and remove none, if there are too few."""
        chosen = self.choose_objects(num_bytes, include_pinned)
        if sum(candidate.bytes for candidate in chosen) < num_bytes:
            return False
        self.unlink_objects(chosen)
        return True

    def remove_any_objects(self, num_bytes: int, include_pinned: bool) -> bool:
        """Remove cached files of up to about `num_bytes`; return whether there were any."""
        chosen = self.choose_objects(num_bytes, include_pinned)
        self.unlink_objects(chosen)
        return bool(chosen)

    def choose_objects(self, num_bytes: int, include_pinned: bool) -> list[CachedObject]:
        """Return the files to remove until at least `num_bytes` are free; fewer if there are too few."""
        chosen: list[CachedObject] = []
        if num_bytes <= 0:
            return chosen
        for candidate in removal_order(self.list_objects(), merge_plans(self.read_live_plans()), include_pinned):
            chosen.append(candidate)
            num_bytes -= candidate.bytes
            if num_bytes <= 0:
                break
        return chosen

    def unlink_objects(self, chosen: Sequence[CachedObject]) -> None:
        """Remove files from the cache; a process that has opened one can still read it."""
        for candidate in chosen:
            (self.objects / candidate.sha256).unlink(missing_ok=True)

    def list_objects(self) -> list[CachedObject]:
        """Return all cached files."""
        return [
            CachedObject(name, status.st_size, status.st_mtime_ns) for name, status in list_file_status(self.objects)
        ]

    def used_bytes(self) -> int:
        """Return the size of all files and partial files in bytes; the cache must be locked."""
        return sum(status.st_size for folder in (self.objects, self.partials) for _, status in list_file_status(folder))

    def measure_bytes(self) -> int:
        """Return the size of all files and partial files in bytes."""
        with self.write_errors(), self.lock_cache():
            return self.used_bytes()

    def remove_dead_partials(self, item: CacheItem) -> None:
        """Remove the partial files of killed processes, whose locks are free, and that of the item of this process."""
        for path in list(self.partials.iterdir()):
            if path.name == item.sha256:
                path.unlink(missing_ok=True)
                continue
            with exclusive_lock(self.locks / path.name, wait=False) as is_dead:
                if is_dead:
                    path.unlink(missing_ok=True)

    def lock_cache(self) -> AbstractContextManager[bool]:
        """Lock the list of files, for short changes."""
        return exclusive_lock(self.folder / "cache.lock")

    def lock_item(self, item: CacheItem, wait: bool = True) -> AbstractContextManager[bool]:
        """Lock one file while it is downloaded."""
        return exclusive_lock(self.locks / item.sha256, wait)

    def write_errors(self) -> AbstractContextManager[None]:
        """Convert errors of the cache folder, such as a full disk, to a UserError."""
        return user_friendly_write_errors(self.folder, CACHE_REMEDY)

    def register_user(self) -> tuple[str, int]:
        """Return a name for this process and its children, and the lock that shows that one of them runs.

        The cache must be locked, so that the file is not removed before it is locked.
        """
        name = uuid.uuid4().hex
        path = self.users / name
        descriptor = open_lock_file(path)
        lock_descriptor(path, descriptor, wait=False)
        return name, descriptor

    def publish_plan(self, uses: Sequence[PlannedUse]) -> None:
        """Replace the plan of this process and its children, which protects the files of its next uses.

        A file that is in no plan is removed first.
        """
        with self.write_errors():
            write_plan(self.plan_path(self.user), uses)

    def plan_path(self, user: str) -> Path:
        """Return the path of a user's plan."""
        return self.users / f"{user}.plan"

    def read_live_plans(self) -> list[list[PlannedUse]]:
        """Return the plans of all users that still run, and remove those of the others; the cache must be locked."""
        plans = []
        for path in list(self.users.iterdir()):
            if path.suffix:
                continue
            with exclusive_lock(path, wait=False) as is_dead:
                if is_dead:
                    path.unlink(missing_ok=True)
                    self.plan_path(path.name).unlink(missing_ok=True)
                else:
                    plans.append(read_plan(self.plan_path(path.name)))
        return plans


def changed_file_error(source: FileSource, found_sha256: str, expected_sha256: str) -> UserError:
    """Return the error for a file that does not have the hash in its manifest."""
    return UserError(
        f"{source.redacted}: has changed since it was indexed (sha256 {found_sha256[:8]}, not {expected_sha256[:8]}); "
        "restore it or run `featgan index` again"
    )


def list_file_status(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the name and status of each file of a folder, except for those that are removed meanwhile."""
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                yield entry.name, entry.stat(follow_symlinks=False)


class ReservedFile(io.FileIO):
    """A file that keeps its size, and thus its space, while its content is written from the start again."""

    def truncate(self, size: int | None = None, /) -> int:
        return self.tell() if size is None else size


def create_file_of_size(path: Path, num_bytes: int) -> BinaryIO:
    """Create a file for writing whose space is reserved, as far as the file system can do this."""
    file = io.BufferedWriter(ReservedFile(path, "xb"))
    try:
        with name_file_in_errors(path):
            try:
                os.posix_fallocate(file.fileno(), 0, num_bytes)
            except OSError as error:
                if error.errno not in NO_ALLOCATION_ERRORS:
                    raise
                os.ftruncate(file.fileno(), num_bytes)
    except BaseException:
        file.close()
        raise
    return file


def format_gigabytes(num_bytes: int) -> str:
    """Return a size in gigabytes, with enough digits for small caches."""
    return f"{num_bytes / GIGABYTE:.3g}"
