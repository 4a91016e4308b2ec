"""Verify file hashes, with a memo of verified files, so that an unchanged file is hashed only once.

The memo is a file in the same folder. If the folder is read-only, the memo is in the user's cache folder.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from featgan.system.files import atomic_write, sha256_of
from featgan.system.json_files import read_side_file
from featgan.system.progress import track_progress

logger = logging.getLogger(__name__)

MEMO_FILE = ".verified.json"

MIN_AGE_NANOSECONDS = 2e9
"""Age in nanoseconds from which a file is added to the memo; a newer file could change without a new time stamp."""

VerifiedFiles = dict[str, list[str | int]]
"""File name, or absolute path in another folder => [sha256, size in bytes, modification time in nanoseconds]."""


def first_modified_file(folder: Path, hashes: Mapping[str, str], unit: str) -> Path | None:
    """Return the first file (`hashes`: name => sha256) whose content does not match its hash, or None.

    The name of a file in another folder is its absolute path. A file with the same expected hash, size and modification
    time as in the memo is not read again.
    """
    memos = load_memos(folder)
    unverified = [name for name, sha256 in hashes.items() if not is_in_memo(memos, name, folder / name, sha256)]
    newly_verified: VerifiedFiles = {}
    for name in track_progress(unverified, f"hashing {unit}", unit=unit) if unverified else ():
        stamp_before = file_stamp(folder / name, hashes[name])
        if sha256_of(folder / name) != hashes[name]:
            return folder / name
        if is_old_enough(stamp_before):
            newly_verified[name] = stamp_before
    if newly_verified:
        save_memo(folder, newly_verified, hashes)
    return None


def verify_once(path: Path, check: str, verify: Callable[[], None]) -> None:
    """Call `verify`, which raises an error if the file is damaged, unless this version of the file passed the check.

    `check` identifies the check and everything that it depends on except the content of the file.
    """
    stamp_before = file_stamp(path, check)
    if is_in_memo(load_memos(path.parent), path.name, path, check):
        return
    verify()
    if is_old_enough(stamp_before):
        save_memo(path.parent, {path.name: stamp_before}, None)


def file_stamp(path: Path, sha256: str) -> list[str | int]:
    """Return the memo entry of a file: its expected hash, size and modification time."""
    status = path.stat()
    return [sha256, status.st_size, status.st_mtime_ns]


def is_in_memo(memos: Iterable[VerifiedFiles], name: str, path: Path, sha256: str) -> bool:
    """Return whether a memo contains this version of a file under its name."""
    entries = [memo[name] for memo in memos if name in memo]
    return bool(entries) and file_stamp(path, sha256) in entries


def is_old_enough(stamp: list[str | int]) -> bool:
    """Return whether a later change of the file must change its modification time."""
    return time.time_ns() - int(stamp[2]) > MIN_AGE_NANOSECONDS


def memo_paths(folder: Path) -> list[Path]:
    """Return the paths of the memos of a folder: in it and, for a read-only folder, in the cache folder of the user."""
    cache_home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()
    user_memo = Path(cache_home) / "featgan" / "verified" / f"{name}.json"
    return [folder / MEMO_FILE, *([user_memo] if user_memo.is_absolute() else [])]


def load_memos(folder: Path) -> list[VerifiedFiles]:
    """Read the memos of a folder; one that cannot be read counts as empty."""
    return [read_memo(path) for path in memo_paths(folder)]


def read_memo(path: Path) -> VerifiedFiles:
    """Read a memo; it counts as empty if it cannot be read."""
    return read_side_file(path) or {} if os.access(path, os.R_OK) else {}


def save_memo(folder: Path, verified: VerifiedFiles, names: Iterable[str] | None) -> None:
    """Add entries to the memo of the folder or, if that is read-only, of the user.

    Of the other entries, those of `names` and of existing files are kept; None keeps all. Logs a warning if neither
    memo can be written.
    """
    errors: list[OSError] = []
    for path in memo_paths(folder):
        entries = read_memo(path) | verified
        if names is not None:
            kept = set(names)
            entries = {name: entry for name, entry in entries.items() if name in kept or (folder / name).is_file()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            atomic_write(path, json.dumps(entries).encode())
            return
        except OSError as error:
            errors.append(error)
    reason = errors[0].strerror or errors[0]
    logger.warning(f"{folder / MEMO_FILE}: cannot be written ({reason}); the files are hashed at every start")
