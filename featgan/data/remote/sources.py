"""Copies of files of a shared file system; URLs are not supported yet."""

import hashlib
from dataclasses import dataclass
from typing import BinaryIO

from featgan.errors import UserError
from featgan.system.files import open_regular_file, user_friendly_read_errors
from featgan.system.locations import Location

CHUNK_BYTES = 4 << 20


@dataclass(frozen=True)
class FetchedFile:
    """Hash and size of a copied file."""

    sha256: str
    size: int


def fetch_file(location: Location, target: BinaryIO, max_bytes: int, retry_seconds: float) -> FetchedFile:
    """Copy a file to `target`, at most `max_bytes` and one more."""
    check_local(location)
    digest, size = hashlib.sha256(), 0
    with user_friendly_read_errors(location.path, "copy the file again"), open_regular_file(location.path) as file:
        target.seek(0)
        while size <= max_bytes and (chunk := file.read(min(CHUNK_BYTES, max_bytes + 1 - size))):
            target.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    return FetchedFile(digest.hexdigest(), size)


def read_small(location: Location, max_bytes: int, retry_seconds: float) -> bytes:
    """Return the content of a file. Raises UserError for a URL."""
    check_local(location)
    with user_friendly_read_errors(location.path, "copy the file again"), open_regular_file(location.path) as file:
        return file.read(max_bytes)


def check_local(location: Location) -> None:
    """Raise UserError for a URL."""
    if location.is_remote:
        raise UserError(f"{location}: cannot be read from a URL yet; download the folder and use its path")
