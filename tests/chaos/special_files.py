"""Replace a file by something that is not a regular file, or by a file of an extreme size."""

import os
import random
import socket
from collections.abc import Callable
from pathlib import Path


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    """Create a UNIX socket; its path must be short, so it is created through the folder."""
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{descriptor}/{path.name}")
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    (path / "inside").mkdir(parents=True)


def make_link_loop(path: Path) -> None:
    path.symlink_to(path.name)


def make_missing_link(path: Path) -> None:
    path.symlink_to("missing")


def make_zero_link(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_tty_link(path: Path) -> None:
    path.symlink_to("/dev/tty")


def make_memory_link(path: Path) -> None:
    path.symlink_to("/proc/self/mem")


def make_empty_file(path: Path) -> None:
    path.write_bytes(b"")


def make_sparse_file(path: Path) -> None:
    """Create a file of 1.5 GB that takes no space on the disk."""
    with path.open("wb") as file:
        file.truncate(1_500_000_000)


def make_nothing(path: Path) -> None:
    """Leave the path free: the file is missing."""


SPECIAL_FILES: dict[str, Callable[[Path], None]] = {
    "a named pipe": make_fifo,
    "a socket": make_socket,
    "a folder": make_folder,
    "a symbolic link to itself": make_link_loop,
    "a symbolic link to a missing file": make_missing_link,
    "a symbolic link to /dev/zero": make_zero_link,
    "a symbolic link to /dev/tty": make_tty_link,
    "a symbolic link to /proc/self/mem": make_memory_link,
    "an empty file": make_empty_file,
    "a sparse file of 1.5 GB": make_sparse_file,
    "a missing file": make_nothing,
}


def replace_by_special_file(path: Path, rng: random.Random) -> str:
    """Replace a file and return a description."""
    name = rng.choice(list(SPECIAL_FILES))
    path.unlink()
    SPECIAL_FILES[name](path)
    return f"{path.name} is {name}"
