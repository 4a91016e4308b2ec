"""Check files of `torch.save` before PyTorch reads them: the instructions and the tensors that they declare."""

import pickletools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from featgan.system.files import open_regular_file
from featgan.system.limits import (
    MAX_PICKLE_BYTES,
    MAX_PICKLE_CALLS,
    MAX_PICKLE_INSTRUCTIONS,
    MAX_SCALAR_BYTES,
)
from featgan.system.zip_files import ZIP_SIGNATURE, open_zip_archive

NUM_LEADING_PICKLES = 5
"""Pickles at the start of a file of PyTorch before 1.6; the values of the tensors follow."""

MAX_COPIED_TEXT = 4096
"""Length of a text in a file that calls `_codecs.encode`, which copies the text with every call."""


class TorchFileError(ValueError):
    """A file that is not from `torch.save` or exceeds a limit; the message is the problem."""


class LimitedReader:
    """Reads at most a number of bytes of a file, as the parser of pickles needs it."""

    def __init__(self, file: IO[bytes], max_bytes: int) -> None:
        self.file = file
        self.remaining = max_bytes

    def read(self, size: int) -> bytes:
        """Return `size` bytes, or fewer at the end. Raises TorchFileError beyond the limit."""
        self.consume(size)
        return self.file.read(size)

    def readline(self) -> bytes:
        line = self.file.readline(self.remaining + 1)
        self.consume(len(line))
        return line

    def consume(self, size: int) -> None:
        self.remaining -= size
        if self.remaining < 0:
            raise TorchFileError(f"its list of tensors has more than {MAX_PICKLE_BYTES >> 20} MiB")

    def tell(self) -> int:
        return self.file.tell()


def check_torch_file(path: Path) -> None:
    """Raise TorchFileError or ZipError unless a file is from `torch.save` and stays within the limits.

    Reading the tensors then needs little more memory than the file has bytes. Raises OSError and UserError as
    `open_regular_file`.
    """
    with open_regular_file(path) as file:
        if file.read(len(ZIP_SIGNATURE)) != ZIP_SIGNATURE:
            file.seek(0)
            reader = LimitedReader(file, MAX_PICKLE_BYTES)
            check_instructions(op for _ in range(NUM_LEADING_PICKLES) for op in read_instructions(reader))
            return
    with open_zip_archive(path) as archive:
        for member in archive.infolist():
            if member.filename.lower().endswith("data.pkl"):  # PyTorch ignores case
                with archive.open(member) as file:
                    check_instructions(read_instructions(LimitedReader(file, MAX_PICKLE_BYTES)))


def read_instructions(reader: LimitedReader) -> Iterator[tuple[str, Any]]:
    """Yield the name and the argument of each instruction of a pickle, up to its end; nothing is executed."""
    try:
        for opcode, argument, _ in pickletools.genops(cast("IO[bytes]", reader)):
            yield opcode.name, argument
    except TorchFileError:
        raise
    except (ValueError, AttributeError, OverflowError) as error:  # AttributeError: a text that is not ASCII
        raise TorchFileError(f"not a file of torch.save, or damaged ({str(error)[:80]})") from None


def check_instructions(instructions: Iterable[tuple[str, Any]]) -> None:
    """Raise TorchFileError for too many instructions or calls, and for calls that may allocate any size."""
    num_calls = longest_text = 0
    has_copies = False
    for number, (name, argument) in enumerate(instructions):
        num_calls += name in ("REDUCE", "NEWOBJ", "BINPERSID")
        if name == "GLOBAL":
            has_copies |= argument == "_codecs encode"
            if argument.endswith("bytearray"):
                raise TorchFileError("it contains a bytearray, which can have any size")
        elif isinstance(argument, str | bytes):
            longest_text = max(longest_text, len(argument))
        if number >= MAX_PICKLE_INSTRUCTIONS or num_calls > MAX_PICKLE_CALLS:
            raise TorchFileError(f"its list of tensors has more than {MAX_PICKLE_CALLS // 2} entries")
    if has_copies and longest_text > MAX_COPIED_TEXT:
        raise TorchFileError(f"it contains a text with more than {MAX_COPIED_TEXT} characters")


def make_plain_dtype(name: str, *flags: Any) -> np.dtype:
    """Return the data type of a NumPy scalar in a file. Raises TorchFileError for one that has any size."""
    dtype = np.dtype(name)
    if dtype.itemsize > MAX_SCALAR_BYTES:
        raise TorchFileError(f"it contains a value of {dtype.itemsize} bytes")
    return dtype
