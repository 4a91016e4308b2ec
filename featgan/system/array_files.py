"""Read NumPy arrays: the only module that does. Headers are compared with the size of the file before allocation."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import IO

import numpy as np

from featgan.system.files import describe_read_error, open_regular_file
from featgan.system.limits import MAX_ARRAY_HEADER_BYTES
from featgan.system.zip_files import ZipError, open_zip_archive

HEADER_ERRORS = (ValueError, TypeError, KeyError, SyntaxError, EOFError, RecursionError, MemoryError, TokenError)
"""Errors of NumPy for a malformed header."""


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
        with open_regular_file(path) as file:
            header = read_array_header(file, os.fstat(file.fileno()).st_size)
            if not math.prod(header.shape):
                return np.empty(header.shape, header.dtype)
            order = "F" if header.fortran_order else "C"
            return np.memmap(file, header.dtype, "r", header.offset, header.shape, order)  # type: ignore[call-overload]
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
