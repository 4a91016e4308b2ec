"""Verify file hashes, with a memo of verified files, so that an unchanged file is hashed only once."""

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path

from featgan.system.files import atomic_write, sha256_of
from featgan.system.json_files import read_side_file
from featgan.system.progress import track_progress

logger = logging.getLogger(__name__)

MEMO_FILE = ".verified.json"

MIN_AGE_NANOSECONDS = 2e9
"""Age in nanoseconds from which a file is added to the memo; a newer file could change without a new time stamp."""

VerifiedFiles = dict[str, list[str | int]]
"""File name => [sha256, size in bytes, modification time in nanoseconds]."""


def first_modified_file(folder: Path, hashes: Mapping[str, str], unit: str) -> Path | None:
    """Return the first file (`hashes`: name => sha256) whose content does not match its hash, or None.

    A file with the same expected hash, size and modification time as in the memo is not read again.
    """
    memo = load_memo(folder)
    unverified = [name for name, sha256 in hashes.items() if memo.get(name) != file_stamp(folder / name, sha256)]
    newly_verified: VerifiedFiles = {}
    for name in track_progress(unverified, f"hashing {unit}", unit=unit) if unverified else ():
        stamp_before = file_stamp(folder / name, hashes[name])
        if sha256_of(folder / name) != hashes[name]:
            return folder / name
        if time.time_ns() - int(stamp_before[2]) > MIN_AGE_NANOSECONDS:
            newly_verified[name] = stamp_before
    if newly_verified:
        save_memo(folder, {name: entry for name, entry in (memo | newly_verified).items() if name in hashes})
    return None


def file_stamp(path: Path, sha256: str) -> list[str | int]:
    """Return the memo entry of a file: its expected hash, size and modification time."""
    status = path.stat()
    return [sha256, status.st_size, status.st_mtime_ns]


def load_memo(folder: Path) -> VerifiedFiles:
    """Read the memo of a folder; return an empty one if it cannot be read."""
    return read_side_file(folder / MEMO_FILE) or {}


def save_memo(folder: Path, memo: VerifiedFiles) -> None:
    """Write the memo of a folder; log a warning if the folder cannot be written."""
    try:
        atomic_write(folder / MEMO_FILE, json.dumps(memo).encode())
    except OSError as error:
        reason = error.strerror or error
        logger.warning(f"{folder / MEMO_FILE}: cannot be written ({reason}); the files are hashed at every start")
