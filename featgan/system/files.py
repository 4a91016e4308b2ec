"""Atomic writes of files and folders, write errors, and file hashes."""

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featgan.errors import UserError

DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT)


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file under a temporary name and rename it, so that readers see the old or the new content."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


TRANSIENT_ERRORS = frozenset({errno.ESTALE, errno.EIO, errno.ETIMEDOUT})
"""Errors of a network file system that are not caused by the user; a job may retry."""


@contextmanager
def user_friendly_write_errors(path: Path, remedy: str) -> Iterator[None]:
    """Convert a write error (full disk, read-only folder) to a UserError that ends with `remedy`."""
    try:
        yield
    except OSError as error:
        if error.errno in TRANSIENT_ERRORS:
            raise
        reason = "the disk is full" if error.errno in DISK_FULL_ERRORS else (error.strerror or str(error)).lower()
        raise UserError(f"{path}: cannot be written: {reason}; {remedy}") from error


@contextmanager
def atomic_folder(out: Path, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling folder; rename it to `out` (missing or empty) at the end, or remove it after an error.

    `replace` replaces an existing folder `out` at the end. Leftovers of a killed process are removed first. Raises
    UserError if another process is writing `out`.
    """
    partial = out.with_name(f".{out.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(partial, out)
    try:
        for leftover in partial.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield partial
        previous = out.with_name(f".{out.name}.former.partial")
        if replace and out.exists():
            shutil.rmtree(previous, ignore_errors=True)
            out.replace(previous)
        partial.replace(out)
        shutil.rmtree(previous, ignore_errors=True)
        fsync_folder(out.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def fsync_folder(folder: Path) -> None:
    """Write a folder to disk, so that a rename in it survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_folder(partial: Path, out: Path) -> int:
    """Return an open descriptor of the folder with an exclusive lock (none if the file system does not support locks).

    Raises UserError if another process has the lock.
    """
    descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(f"{out}: is being written by another process; wait for it or choose another folder") from None
    except OSError:
        return descriptor
    # Another process may have renamed the folder after it was opened here and before it was locked.
    if not partial.exists() or not os.path.samestat(os.fstat(descriptor), partial.stat()):
        os.close(descriptor)
        raise UserError(f"{out}: was written by another process just now; run the command again")
    return descriptor
