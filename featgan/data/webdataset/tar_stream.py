"""Reading of tar files from start to end, from a disk or a server, without seeking and with limits."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from featgan.data.shards.index import OTHER_MEMBER_KINDS
from featgan.errors import UserError
from featgan.system.limits import MAX_KEY_BYTES
from featgan.system.locations import Location
from featgan.system.plain_text import format_one_line

MAX_EXTENDED_HEADER_BYTES = 1 << 16
"""Size of the extended header of one member in bytes; it contains the name and times."""

MAX_HEADERS = 8
"""Headers in a row without a file, for one member."""

SKIP_BYTES = 1 << 20
"""Bytes that are skipped at a time."""

REGULAR_KINDS = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE})
EXTENDED_KINDS = frozenset({tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE})
LONG_KINDS = frozenset({tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK})


@dataclass(frozen=True)
class StreamMember:
    """A regular file in a tar: its name, position and size in bytes."""

    name: str
    offset: int
    size: int


class TarStream:
    """A tar that is read once from start to end. Errors are one line that names the tar.

    It accepts regular files in the formats ustar, GNU and pax. Links, devices and sparse files are errors, so that no
    member can lead elsewhere or have a huge size; folders are skipped.
    """

    def __init__(self, file: BinaryIO, location: Location) -> None:
        self.file = file
        self.location = location
        self.position = 0

    def read_exactly(self, num_bytes: int) -> bytes:
        """Return the next bytes. Raises UserError at the end of the file."""
        data = self.file.read(num_bytes)
        self.position += len(data)
        if len(data) < num_bytes:
            raise UserError(f"{self.location}: truncated at byte {self.position:,}; copy it again")
        return data

    def skip_to(self, position: int) -> None:
        """Skip the bytes before a later position. Raises UserError at the end of the file."""
        while self.position < position:
            self.read_exactly(min(SKIP_BYTES, position - self.position))

    def members(self) -> Iterator[StreamMember]:
        """Yield each regular file; its content can be read until the next one is requested.

        Raises UserError if the tar is truncated or contains something else.
        """
        while (member := self.next_member()) is not None:
            yield member
            self.skip_to(member.offset + padded_size(member.size))

    def next_member(self) -> StreamMember | None:
        """Read the headers of the next file; None at the end of the archive."""
        long_name, long_size = "", -1
        num_headers = 0
        while num_headers < MAX_HEADERS:
            start = self.position
            header = self.read_exactly(tarfile.BLOCKSIZE)
            if header == bytes(tarfile.BLOCKSIZE):
                return None
            info = self.parse_header(header, start)
            if info.type in REGULAR_KINDS:
                size = info.size if long_size < 0 else long_size
                return StreamMember(long_name or info.name, self.position, size)
            if info.type == tarfile.DIRTYPE:
                num_headers, long_name, long_size = 0, "", -1
                continue
            num_headers += 1
            content = self.read_header_content(info)
            if info.type in LONG_KINDS:
                long_name = decode_name(content) if info.type == tarfile.GNUTYPE_LONGNAME else long_name
            elif info.type in EXTENDED_KINDS:
                fields = self.parse_extended_header(content)
                long_name = decode_name(fields.get(b"path", b"")) or long_name
                long_size = int(fields[b"size"]) if b"size" in fields else long_size
        raise UserError(f"{self.location}: not a readable tar file (too many headers for one file)")

    def parse_header(self, header: bytes, start: int) -> tarfile.TarInfo:
        """Return the content of a header. Raises UserError if it is not valid."""
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError) as error:
            hint = (
                "; decompress it first"
                if start == 0 and header[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5")
                else ""
            )
            problem = f"invalid header at byte {start:,}: {error}"
            raise UserError(
                f"{self.location}: not a readable tar file ({problem}){hint or '; copy it again'}"
            ) from None
        if info.size < 0:
            raise UserError(f"{self.location}: not a readable tar file (negative size at byte {start:,})")
        return info

    def read_header_content(self, info: tarfile.TarInfo) -> bytes:
        """Return the content of an extended header. Raises UserError for other kinds of entries and large headers."""
        name = format_one_line(info.name)
        if info.type not in LONG_KINDS | EXTENDED_KINDS | {tarfile.XGLTYPE}:
            kind = OTHER_MEMBER_KINDS.get(info.type, "an entry of another kind")
            raise UserError(f"{self.location}: {name} is {kind}, not a regular file; pack the tar again without it")
        if info.size > MAX_EXTENDED_HEADER_BYTES:
            raise UserError(f"{self.location}: {name} has an extended header of {info.size:,} bytes")
        content = self.read_exactly(padded_size(info.size))[: info.size]
        if info.type == tarfile.GNUTYPE_LONGNAME and len(content) > MAX_KEY_BYTES:
            raise UserError(f"{self.location}: a name has {len(content):,} bytes; use shorter names")
        return content

    def parse_extended_header(self, content: bytes) -> dict[bytes, bytes]:
        """Return the fields of a pax header, which are lines of the form `LENGTH NAME=VALUE`."""
        fields: dict[bytes, bytes] = {}
        while content.rstrip(b"\0"):
            length_text = content.partition(b" ")[0]
            length = int(length_text) if length_text.isdigit() and len(length_text) < 6 else 0
            name, equals, value = content[len(length_text) + 1 : length - 1].partition(b"=")
            is_size = name == b"size" and not (value.isdigit() and len(value) < 16)
            if length <= len(length_text) + 2 or length > len(content) or not equals or is_size:
                raise UserError(f"{self.location}: not a readable tar file (invalid extended header)")
            if name.startswith(b"GNU.sparse"):
                raise UserError(f"{self.location}: contains a sparse file; pack the tar again without --sparse")
            if name == b"path" and len(value) > MAX_KEY_BYTES:
                raise UserError(f"{self.location}: a name has {len(value):,} bytes; use shorter names")
            fields[name] = value
            content = content[length:]
        return fields


def padded_size(num_bytes: int) -> int:
    """Return the size of a content in a tar, which is a multiple of the block size."""
    return -(-num_bytes // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def decode_name(name: bytes) -> str:
    """Return a name of a member; bytes that are not UTF-8 become surrogates, as in file names."""
    return name.rstrip(b"\0").decode("utf-8", "surrogateescape")
