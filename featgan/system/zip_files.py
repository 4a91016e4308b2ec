"""Open zip archives whose list of members has a limited size, and whose members are not larger than the archive.

PyTorch reads archives with a parser of its own, so an archive that two parsers could read differently is rejected.
"""

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

ZIP64_RECORD = struct.Struct("<4sQ2H2L4Q")
"""The last record of an archive above 4 GB: sizes, versions, disks, counts, size and offset of the directory."""

ZIP64_LOCATOR, ZIP64_LOCATOR_SIGNATURE = struct.Struct("<4sLQL"), b"PK\x06\x07"
"""Follows that record and precedes the other last record: signature, disk, offset of the record, number of disks."""

MAX_TAIL_BYTES = END_RECORD.size + 65535 + ZIP64_LOCATOR.size + ZIP64_RECORD.size
"""Bytes at the end of an archive that contain these records; a comment has at most 65,535 bytes."""


class ZipError(ValueError):
    """An archive that is damaged or exceeds a limit; the message is the problem."""


@contextmanager
def open_zip_archive(path: Path, max_compressed_bytes: int = 0) -> Iterator[zipfile.ZipFile]:
    """Open an archive whose members are stored without compression, as NumPy and PyTorch write them.

    TorchScript files compress their code: `max_compressed_bytes` is the size of all compressed members. Raises ZipError
    if the archive is damaged, has too many members, or if members declare more bytes than the archive has, and OSError
    and UserError as `open_regular_file`.
    """
    with open_regular_file(path) as file:
        check_directory(file)
        try:
            with zipfile.ZipFile(file) as archive:
                check_members(archive, os.fstat(file.fileno()).st_size, max_compressed_bytes)
                yield archive
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, struct.error, UnicodeError) as error:
            raise ZipError(f"damaged zip archive ({error})") from None


def list_members(path: Path) -> list[str]:
    """Return the names of the members of an archive; none if the file is not an archive that can be read."""
    try:
        with open_regular_file(path) as file:
            check_directory(file)
            with zipfile.ZipFile(file) as archive:
                return archive.namelist()
    except (OSError, UserError, ValueError, zipfile.BadZipFile, NotImplementedError, struct.error):
        return []


def check_directory(file: BinaryIO) -> None:
    """Raise ZipError unless the list of members has a limited size and ends where the records after it start.

    Otherwise, some parsers read the list at its offset, and others before the last record.
    """
    size = os.fstat(file.fileno()).st_size
    start = max(0, size - MAX_TAIL_BYTES)
    file.seek(start)
    tail = file.read(size - start)
    position = tail.rfind(END_SIGNATURE)
    if position < 0 or len(tail) - position < END_RECORD.size:
        raise ZipError("not a zip archive, or it is truncated")
    directory_bytes, offset = END_RECORD.unpack_from(tail, position)[5:7]
    if tail[max(0, position - ZIP64_LOCATOR.size) : position].startswith(ZIP64_LOCATOR_SIGNATURE):
        locator_position = position - ZIP64_LOCATOR.size
        position = locator_position - ZIP64_RECORD.size
        if position < 0 or ZIP64_LOCATOR.unpack_from(tail, locator_position)[2] != start + position:
            raise ZipError("damaged zip archive (no list of members)")
        directory_bytes, offset = ZIP64_RECORD.unpack_from(tail, position)[8:10]
    if directory_bytes > MAX_ZIP_DIRECTORY_BYTES:
        raise ZipError(f"a list of members with more than {MAX_ZIP_DIRECTORY_BYTES >> 20} MiB")
    if offset + directory_bytes != start + position:
        raise ZipError("damaged zip archive (its list of members is not at the end)")
    file.seek(0)


def check_members(archive: zipfile.ZipFile, archive_bytes: int, max_compressed_bytes: int) -> None:
    """Raise ZipError if members have ambiguous names, are compressed too much, or are larger than the archive."""
    names: set[str] = set()
    stored_bytes = compressed_bytes = 0
    for member in archive.infolist():
        name = member.filename.lower()  # PyTorch ignores case: it reads A/DATA.PKL as a/data.pkl
        if member.filename != member.orig_filename or name in names:
            raise ZipError(f"the name of the member {member.orig_filename!r} is ambiguous")
        names.add(name)
        if member.compress_type != zipfile.ZIP_STORED:
            compressed_bytes += member.file_size
        elif member.file_size != member.compress_size:
            raise ZipError(f"the member {member.filename!r} has two sizes")
        else:
            stored_bytes += member.file_size
    if compressed_bytes > max_compressed_bytes:
        raise ZipError("its compressed members are too large" if max_compressed_bytes else "its members are compressed")
    if stored_bytes > archive_bytes:
        raise ZipError("its members declare more bytes than the file has")
