"""A descriptor of a file that is read at given positions."""

import os
from pathlib import Path


class OpenFile:
    """A file open for reading; it is closed when the last reference is deleted."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return os.fstat(self.descriptor).st_size

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)
