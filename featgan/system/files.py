"""Files written whole or not at all, and their hashes."""

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featgan.errors import UserError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_whole(path: Path, data: bytes) -> None:
    """Write to a temporary name in the same folder, then rename; readers see the old file or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sha256_of(path: Path) -> str:
    """The hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


TRANSIENT = frozenset({errno.ESTALE, errno.EIO, errno.ETIMEDOUT})
"""What a network's file system says when it hiccups: no mistake of the user's, and a job may try again."""


@contextmanager
def explain_write_errors(path: Path, remedy: str) -> Iterator[None]:
    """A full disk or a folder that cannot be written becomes one line: `remedy` says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in TRANSIENT:
            raise
        reason = "the disk is full" if error.errno in DISK_FULL else (error.strerror or str(error)).lower()
        raise UserError(f"{path}: cannot be written: {reason}; {remedy}") from error


@contextmanager
def whole_folder(out: Path, replace: bool = False) -> Iterator[Path]:
    """A sibling folder to fill, renamed to `out` (absent or empty) at the end and removed if anything goes wrong.

    With `replace` what is at `out` gives way, at the very end. What a killed process left there is removed first;
    UserError when a living one is at it.
    """
    partial = out.with_name(f".{out.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(partial, out)
    try:
        for leftover in partial.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield partial
        former = out.with_name(f".{out.name}.former.partial")
        if replace and out.exists():
            shutil.rmtree(former, ignore_errors=True)
            os.replace(out, former)
        os.replace(partial, out)
        shutil.rmtree(former, ignore_errors=True)
        sync_folder(out.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def sync_folder(folder: Path) -> None:
    """Make a rename within a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_folder(partial: Path, out: Path) -> int:
    """An open, locked descriptor of the folder; file systems without locks are trusted."""
    descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(f"{out}: another process is writing it; wait for that one or choose another folder") from None
    except OSError:
        return descriptor
    # The other process may have renamed the folder between our opening it and locking it.
    if not partial.exists() or not os.path.samestat(os.fstat(descriptor), partial.stat()):
        os.close(descriptor)
        raise UserError(f"{out}: another process has just written it; run the command again")
    return descriptor
