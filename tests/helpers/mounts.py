"""Runs commands with other file systems in place of a folder, in a mount namespace of their own (as root only)."""

import functools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

COMMAND_TIMEOUT = 300.0
"""Seconds after which a command counts as hanging on a busy machine."""


@functools.cache
def mount_error() -> str:
    """Return why this process cannot mount file systems; empty if it can."""
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr.strip()
    except OSError as error:
        return str(error)


def run_with_mounts(
    setup: str, command: Sequence[str], timeout: float = COMMAND_TIMEOUT
) -> "subprocess.CompletedProcess[str]":
    """Run a command after the shell commands `setup`, whose mounts only this command sees; skip without the rights."""
    if mount_error():
        pytest.skip(f"file systems cannot be mounted: {mount_error()}")
    script = f'set -e\n{setup}\nexec "$@"'
    return subprocess.run(
        ["unshare", "-m", "bash", "-c", script, "bash", *command],
        capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def small_shared_memory(kilobytes: int) -> str:
    """Return the shell command that limits /dev/shm."""
    return f"mount -t tmpfs -o size={kilobytes}k tmpfs /dev/shm"


def read_only(folder: Path) -> str:
    """Return the shell command that makes a folder and everything in it read-only."""
    return f"mount --bind '{folder}' '{folder}'\nmount -o remount,bind,ro '{folder}'"


def featgan_command(*arguments: object) -> list[str]:
    """Return a command line of featgan."""
    return [sys.executable, "-m", "featgan", *map(str, arguments)]
