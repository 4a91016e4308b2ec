"""Atomic writes of files and folders, write errors, file hashes, and reading of regular files of limited size."""

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from featgan.errors import UserError
from featgan.system.os_errors import TRANSIENT_ERRORS, adapt_remedy, format_path, os_error_reason


@contextmanager
def name_file_in_errors(path: Path) -> Iterator[None]:
    """Add the path to errors that name no file: those of `write`, `flush` and `fsync` on an open file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file under a temporary name and rename it, so that readers see the old or the new content."""
    with atomic_file(path) as file:
        file.write(data)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing under a temporary name; at the end of the block, it is renamed to `path`.

    After an exception, the temporary file is removed. Errors of the file system name it.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with name_file_in_errors(path), partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file. Every error names the file."""
    with name_file_in_errors(path):
        path.write_text(text, encoding="utf-8")


def open_regular_file(path: Path) -> BufferedReader:
    """Open a file for reading in binary mode, without waiting for a writer.

    Raises UserError if the path is a folder, a pipe, a socket or a device, and OSError if it cannot be opened.
    """
    check_regular_mode(path, path.stat().st_mode)  # opening a device can already change its state
    # The file may be replaced after the first check: opening a pipe waits for a writer without O_NONBLOCK.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        check_regular_mode(path, os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


@contextmanager
def open_for_append(path: Path) -> Iterator[int]:
    """Yield the descriptor of a regular file, which is created if it is missing; what is written is appended.

    Does not wait for the reader of a pipe. Raises UserError if the path is a pipe, a socket or a device, and OSError
    with the path if it cannot be opened or written.
    """
    with name_file_in_errors(path):
        with suppress(FileNotFoundError):
            check_regular_mode(path, path.stat().st_mode)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        descriptor = os.open(path, flags, 0o666)
        try:
            check_regular_mode(path, os.fstat(descriptor).st_mode)
            yield descriptor
        finally:
            os.close(descriptor)


def check_regular_mode(path: Path, mode: int) -> None:
    """Raise UserError unless the mode is that of a regular file."""
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise UserError(f"{path}: is {kind}, not a file; give the path of a regular file")


def read_regular_file(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file of at most `max_bytes` bytes.

    Raises UserError if the file is larger or not a regular file, and OSError if it cannot be read.
    """
    with open_regular_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise UserError(f"{path}: has {size} bytes; at most {max_bytes} are allowed for this kind of file")
        return file.read(size)


def read_side_text(path: Path, max_bytes: int) -> str:
    """Return a text that is shown but not needed: empty if it cannot be read, with replaced characters if damaged."""
    try:
        return read_regular_file(path, max_bytes).decode("utf-8", "replace")
    except (OSError, UserError):
        return ""


def describe_read_error(error: OSError) -> str:
    """Return the reason of an error while a file was read, for a message."""
    return "missing" if isinstance(error, FileNotFoundError) else os_error_reason(error)


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a regular file."""
    with open_regular_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def user_friendly_read_errors(path: Path, remedy: str) -> Iterator[None]:
    """Convert a read error to a UserError that ends with `remedy`, except for those that another attempt may not have.

    Those are the errors of network file systems.
    """
    try:
        yield
    except OSError as error:
        if error.errno in TRANSIENT_ERRORS:
            raise
        raise UserError(f"{path}: {describe_read_error(error)}; {remedy}") from None


@contextmanager
def user_friendly_write_errors(path: Path, remedy: str) -> Iterator[None]:
    """Convert a write error (full disk, read-only folder) to a UserError that ends with `remedy`."""
    try:
        yield
    except OSError as error:
        if error.errno in TRANSIENT_ERRORS:
            raise
        remedy = adapt_remedy(remedy, error)
        raise UserError(f"{format_path(path)}: cannot be written: {os_error_reason(error)}; {remedy}") from error


def check_writable(out: Path, remedy: str) -> None:
    """Raise UserError if `out` cannot be created, before the work whose result it is to contain.

    Nothing is left behind: only a temporary file is written, to the nearest folder that exists.
    """
    with user_friendly_write_errors(out, remedy):
        former_path(out).exists()  # raises an error for a name that is too long
        folder = next(path for path in (out, *out.absolute().parents) if path.is_dir())
        with tempfile.TemporaryFile(dir=folder):
            pass


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
        previous = former_path(out)
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


def remove_folder(folder: Path) -> None:
    """Remove a folder. It gets another name first, so that a killed process leaves no incomplete folder.

    `former_path` names what a killed process leaves.
    """
    previous = former_path(folder)
    shutil.rmtree(previous, ignore_errors=True)
    folder.replace(previous)
    shutil.rmtree(previous, ignore_errors=True)


def former_path(path: Path) -> Path:
    """Return the temporary name of a folder that is being replaced or removed."""
    return path.with_name(f".{path.name}.former.partial")


def fsync_folder(folder: Path) -> None:
    """Write a folder to disk, so that a rename in it survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with name_file_in_errors(folder):
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
