"""Open zip archives whose list of members has a limited size, and whose members are not larger than the archive."""

import os
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from featgan.errors import UserError
from featgan.system.files import open_regular_file
from featgan.system.limits import MAX_ZIP_DIRECTORY_BYTES

ZIP_SIGNATURE = b"PK\x03\x04"
"""The first bytes of an archive with at least one member."""

END_RECORD, END_SIGNATURE = struct.Struct("<4s4H2LH"), b"PK\x05\x06"
"""The last record of an archive: signature, disks and counts, size and offset of the directory, comment length."""

ZIP64_RECORD, ZIP64_LOCATOR_BYTES, ZIP64_LOCATOR_SIGNATURE = struct.Struct("<4sQ2H2L4Q"), 20, b"PK\x06\x07"
"""The last record of an archive above 4 GB, and the locator that follows it; both precede the other last record."""

MAX_TAIL_BYTES = END_RECORD.size + 65535 + ZIP64_LOCATOR_BYTES + ZIP64_RECORD.size
"""Bytes at the end of an archive that contain these records; a comment has at most 65,535 bytes."""


class ZipError(ValueError):
    """An archive that is damaged or exceeds a limit; the message is the problem."""


@contextmanager
def open_zip_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive whose members are stored without compression, as NumPy and PyTorch write them.

    Raises ZipError if it is damaged, has too many members, or if members declare more bytes than the archive has, and
    OSError and UserError as `open_regular_file`.
    """
    with open_regular_file(path) as file:
        check_directory_size(file)
        try:
            with zipfile.ZipFile(file) as archive:
                check_members(archive, os.fstat(file.fileno()).st_size)
                yield archive
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, struct.error, UnicodeError) as error:
            raise ZipError(f"damaged zip archive ({error})") from None


def list_members(path: Path) -> list[str]:
    """Return the names of the members of an archive; none if the file is not an archive that can be read."""
    try:
        with open_regular_file(path) as file:
            check_directory_size(file)
            with zipfile.ZipFile(file) as archive:
                return archive.namelist()
    except (OSError, UserError, ValueError, zipfile.BadZipFile, NotImplementedError, struct.error):
        return []


def check_directory_size(file: BinaryIO) -> None:
    """Raise ZipError unless the list of members, which is read completely, has a limited size."""
    size = os.fstat(file.fileno()).st_size
    start = max(0, size - MAX_TAIL_BYTES)
    file.seek(start)
    tail = file.read(size - start)
    position = tail.rfind(END_SIGNATURE)
    if position < 0 or len(tail) - position < END_RECORD.size:
        raise ZipError("not a zip archive, or it is truncated")
    directory_bytes = END_RECORD.unpack_from(tail, position)[5]
    if tail[max(0, position - ZIP64_LOCATOR_BYTES) : position].startswith(ZIP64_LOCATOR_SIGNATURE):
        record_position = position - ZIP64_LOCATOR_BYTES - ZIP64_RECORD.size
        if record_position < 0:
            raise ZipError("damaged zip archive (no list of members)")
        directory_bytes = ZIP64_RECORD.unpack_from(tail, record_position)[8]
    if directory_bytes > MAX_ZIP_DIRECTORY_BYTES:
        raise ZipError(f"a list of members with more than {MAX_ZIP_DIRECTORY_BYTES >> 20} MiB")
    file.seek(0)


def check_members(archive: zipfile.ZipFile, archive_bytes: int) -> None:
    """Raise ZipError if a member is compressed, or if all members together are larger than the archive."""
    for member in archive.infolist():
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise ZipError(f"the member {member.filename!r} is compressed")
    if sum(member.file_size for member in archive.infolist()) > archive_bytes:
        raise ZipError("its members declare more bytes than the file has")
