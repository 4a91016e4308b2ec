"""Read safetensors files: the only module that does. The size of the header is checked before it is parsed."""

import os
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from featgan.system.files import describe_read_error, open_regular_file
from featgan.system.limits import MAX_TENSOR_HEADER_BYTES

LENGTH_BYTES = 8
"""Size of the number at the start of a file: the length of the header."""

FORMAT_ERRORS = (SafetensorError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, OverflowError)
"""Errors of safetensors and PyTorch for a malformed header or an unknown data type."""


class TensorFileError(ValueError):
    """A safetensors file that is missing, damaged or exceeds a limit; the message is the problem."""


def read_finite_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file as `read_safetensors` does; raise TensorFileError if a value is NaN or Inf."""
    tensors = read_safetensors(path)
    for name, values in tensors.items():
        if values.is_floating_point() and not values.isfinite().all():
            raise TensorFileError(f"{name!a} contains NaN or Inf")
    return tensors


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name.

    Raises TensorFileError if the file is missing or damaged, and UserError if it is not a regular file.
    """
    try:
        with open_regular_file(path) as file:
            check_header_size(file)
            content = file.read()
    except OSError as error:
        raise TensorFileError(describe_read_error(error)) from None
    try:
        return load(content)
    except FORMAT_ERRORS as error:
        raise TensorFileError(str(error)) from None


def check_header_size(file: BinaryIO) -> None:
    """Raise TensorFileError unless the header is inside the file and not too long."""
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    if length > os.fstat(file.fileno()).st_size - LENGTH_BYTES:
        raise TensorFileError("not a safetensors file, or truncated")
    if length > MAX_TENSOR_HEADER_BYTES:
        raise TensorFileError(f"a header with more than {MAX_TENSOR_HEADER_BYTES >> 20} MiB")
    file.seek(0)
