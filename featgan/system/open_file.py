"""A descriptor of a file that is read at given positions."""

import os
from pathlib import Path

from featgan.system.files import check_regular_mode


class OpenFile:
    """A regular file open for reading; it is closed when the last reference is deleted."""

    def __init__(self, path: Path) -> None:
        """Open the file. Raises UserError if it is a folder, a pipe, a socket or a device."""
        check_regular_mode(path, path.stat().st_mode)  # opening a device can already change its state
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        check_regular_mode(path, os.fstat(self.descriptor).st_mode)

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return os.fstat(self.descriptor).st_size

    @property
    def is_removed(self) -> bool:
        """Whether the file was removed from its folder; its space on the disk is free after it is closed."""
        return os.fstat(self.descriptor).st_nlink == 0

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)
