"""Read NumPy arrays: the only module that does. Headers are compared with the size of the file before allocation.

Arrays that are larger than the memory are mapped, and written in chunks.
"""

import math
import os
import struct
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import IO, Literal

import numpy as np

from featgan.system.files import atomic_file, describe_read_error
from featgan.system.limits import MAX_ARRAY_HEADER_BYTES
from featgan.system.open_file import OpenFile
from featgan.system.zip_files import ZipError, open_zip_archive

HEADER_ERRORS = (ValueError, TypeError, KeyError, SyntaxError, EOFError, RecursionError, MemoryError, TokenError)
"""Errors of NumPy for a malformed header."""


LOCAL_HEADER = struct.Struct("<26x2H")
"""The header before a member of an archive; it ends with the lengths of the name and of the extra fields after it."""


class ArrayError(ValueError):
    """A file of arrays that is missing, damaged or of the wrong kind; the message is the problem."""


@dataclass(frozen=True)
class ArrayHeader:
    """The shape, data type and order of an array, and the position of its values in the file in bytes."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool
    offset: int

    @property
    def end(self) -> int:
        """Size of a file that contains the header and all values, in bytes."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


def read_array_header(file: IO[bytes], num_bytes: int) -> ArrayHeader:
    """Read the header of an array at the start of a file of `num_bytes` bytes.

    Raises ArrayError if it is damaged, if the values are objects or records, or if it declares more bytes than there
    are.
    """
    try:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran_order, dtype = read_header(file, max_header_size=MAX_ARRAY_HEADER_BYTES)
    except HEADER_ERRORS:
        raise ArrayError("damaged header of an array") from None
    header = ArrayHeader(shape, dtype, fortran_order, file.tell())
    if dtype.hasobject or dtype.kind == "V" or min(shape, default=0) < 0 or not (dtype.itemsize or 0 in shape):
        raise ArrayError(f"an array of {dtype} {list(shape)}, which is not allowed")
    if header.end != num_bytes:
        raise ArrayError(f"an array of {dtype} {list(shape)} needs {header.end} bytes, but the file has {num_bytes}")
    return header


def map_array(path: Path) -> np.ndarray:
    """Return the array of a .npy file, memory-mapped; an array without values is not mapped.

    Raises ArrayError if the file is missing or damaged, and UserError if it is not a regular file.
    """
    try:
        return map_open_array(OpenFile(path))
    except OSError as error:
        raise ArrayError(describe_read_error(error)) from None


def map_open_array(file: OpenFile) -> np.ndarray:
    """Return the array of an open .npy file, memory-mapped, which does not need the descriptor any more.

    Raises ArrayError if the file is damaged.
    """
    try:
        with os.fdopen(os.dup(file.descriptor), "rb") as stream:
            stream.seek(0)
            header = read_array_header(stream, file.size)
            if not math.prod(header.shape):
                return np.empty(header.shape, header.dtype)
            order = "F" if header.fortran_order else "C"
            return np.memmap(stream, header.dtype, "r", header.offset, header.shape, order)  # type: ignore[call-overload]
    except OSError as error:
        raise ArrayError(describe_read_error(error)) from None


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Read the named arrays of an uncompressed .npz file.

    Raises ArrayError if the file is missing or damaged, or if an array is missing, and UserError if it is not a regular
    file.
    """
    arrays = {}
    try:
        with open_zip_archive(path) as archive:
            for name in names:
                member = archive.getinfo(f"{name}.npy")
                with archive.open(member) as file:
                    read_array_header(file, member.file_size)
                with archive.open(member) as file:
                    arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
    except KeyError:
        raise ArrayError(f"contains no array {name!r}") from None
    except (ZipError, *HEADER_ERRORS) as error:
        raise ArrayError(str(error) or "damaged") from None
    except OSError as error:
        raise ArrayError(describe_read_error(error)) from None
    return arrays


def map_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the named arrays of an uncompressed .npz file, memory-mapped and read-only.

    Memory is used only for the values that are read. The arrays may not be aligned, so PyTorch needs copies of them.
    Checksums are not compared. Raises ArrayError if the file is missing or damaged, or if an array is missing, and
    UserError if it is not a regular file.
    """
    try:
        with open_zip_archive(path) as archive:
            assert archive.fp is not None
            content = np.asarray(np.memmap(archive.fp, np.uint8, "r"))  # type: ignore[call-overload]
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            if missing := [name for name in names if name not in members]:
                raise ArrayError(f"contains no array {missing[0]!r}")
            return {name: map_member(archive, content, members[name]) for name in names}
    except (ZipError, *HEADER_ERRORS) as error:
        raise ArrayError(str(error) or "damaged") from None
    except OSError as error:
        raise ArrayError(describe_read_error(error)) from None


def map_member(archive: zipfile.ZipFile, content: np.ndarray, member: zipfile.ZipInfo) -> np.ndarray:
    """Return a view of the array of a stored member; `content` are the bytes of the archive."""
    with archive.open(member) as file:  # compares the header before the member with the list of members
        header = read_array_header(file, member.file_size)
    name_bytes, extra_bytes = LOCAL_HEADER.unpack_from(content.data, member.header_offset)
    start = member.header_offset + LOCAL_HEADER.size + name_bytes + extra_bytes
    values = content[start + header.offset : start + header.end]
    if len(values) != header.end - header.offset:
        raise ArrayError(f"the array {member.filename!r} is not inside the file")
    order: Literal["F", "C"] = "F" if header.fortran_order else "C"
    return values.view(header.dtype).reshape(header.shape, order=order)


@dataclass(frozen=True)
class ArrayColumn:
    """An array that is written in chunks along its first axis."""

    dtype: np.dtype
    shape: tuple[int, ...]
    chunks: Iterable[np.ndarray]


def write_npz(path: Path, columns: Mapping[str, ArrayColumn]) -> None:
    """Write arrays to an uncompressed .npz file, atomically; its bytes are those of `np.savez`.

    Raises OSError if the file cannot be written, and ValueError if chunks do not fit the shape of their column.
    """
    with atomic_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, column in columns.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                write_column(member, column)


def write_column(file: IO[bytes], column: ArrayColumn) -> None:
    """Write the header and the chunks of an array."""
    description = {
        "descr": np.lib.format.dtype_to_descr(column.dtype),
        "fortran_order": False,
        "shape": column.shape,
    }
    np.lib.format.write_array_header_1_0(file, description)
    num_rows = 0
    for chunk in column.chunks:
        if chunk.dtype != column.dtype or chunk.shape[1:] != column.shape[1:]:
            raise ValueError(f"{chunk.dtype} {list(chunk.shape)} is not a part of {column.dtype} {list(column.shape)}")
        file.write(chunk.tobytes())
        num_rows += len(chunk)
    if num_rows != column.shape[0]:
        raise ValueError(f"the chunks have {num_rows} rows, not {column.shape[0]}")
