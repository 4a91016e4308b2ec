"""Checks of large image files before decoding, so that a damaged file is rejected without memory for its pixels."""

import os
import zlib
from typing import BinaryIO

LARGE_IMAGE_PIXELS = 16_000_000
"""Images with more pixels are checked; decoding a smaller one costs at most 160 MB."""

BLOCK_BYTES = 1 << 20
"""Number of bytes that are read at a time."""

START_OF_SCAN, END_OF_IMAGE = 0xDA, b"\xff\xd9"
"""Markers of JPEG."""


def find_damage(file: BinaryIO, image_format: str) -> str:
    """Return "truncated" or "corrupted" if a JPEG or PNG file is damaged, or "". The position of the file is kept."""
    checks = {"JPEG": find_jpeg_damage, "MPO": find_jpeg_damage, "PNG": find_png_damage}
    position = file.tell()
    try:
        return checks[image_format](file) if image_format in checks else ""
    finally:
        file.seek(position)


def find_jpeg_damage(file: BinaryIO) -> str:
    """Return "truncated" if the end of the image does not follow its data, or "".

    Segments before the data are skipped, because they can contain a small image that has an end of its own.
    """
    file.seek(2)
    marker = 0
    while marker != START_OF_SCAN:
        header = file.read(4)
        if len(header) < 4:
            return "truncated"
        if header[0] != 0xFF or header[1] == 0xFF:
            return ""  # unusual bytes between two segments: the decoder decides
        marker = header[1]
        file.seek(int.from_bytes(header[2:]) - 2, os.SEEK_CUR)
    last_byte = b""
    while block := file.read(BLOCK_BYTES):
        if END_OF_IMAGE in last_byte + block:
            return ""
        last_byte = block[-1:]
    return "truncated"


def find_png_damage(file: BinaryIO) -> str:
    """Return "truncated" if the file ends before its last chunk, "corrupted" if a checksum is wrong, or ""."""
    file.seek(8)
    name = b""
    while name != b"IEND":
        header = file.read(8)
        name = header[4:]
        checksum = compute_checksum(file, name, int.from_bytes(header[:4]))
        expected = file.read(4)
        if len(expected) < 4:
            return "truncated"
        if checksum != int.from_bytes(expected):
            return "corrupted"
    return ""


def compute_checksum(file: BinaryIO, name: bytes, num_bytes: int) -> int:
    """Return the CRC-32 of the name of a chunk and of the following bytes of the file."""
    checksum = zlib.crc32(name)
    while num_bytes > 0 and (block := file.read(min(num_bytes, BLOCK_BYTES))):
        checksum = zlib.crc32(block, checksum)
        num_bytes -= len(block)
    return checksum
