"""Files whose content was compared with its hash, remembered beside them: each is hashed once while it is unchanged."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from featgan.system.files import sha256_of, write_whole
from featgan.system.progress import console, track

MEMORY = ".verified.json"
MOST_BYTES = 64 << 20

SETTLED = 2e9
"""Nanoseconds after which a write no longer falls into the tick of the one before; younger files are not remembered."""

Known = dict[str, list[str | int]]
"""File name => [sha256, bytes, time of change in nanoseconds]."""


def first_changed(folder: Path, hashes: Mapping[str, str], unit: str) -> Path | None:
    """The first of the files (name => sha256) whose content is another, None when all are what they should be.

    A file that has the hash, size and time of change at which it was found whole is not read again.
    """
    known = recall(folder)
    new = [name for name, sha256 in hashes.items() if known.get(name) != stamp(folder / name, sha256)]
    found: Known = {}
    for name in track(new, f"hashing {unit}", unit=unit) if new else ():
        before = stamp(folder / name, hashes[name])
        if sha256_of(folder / name) != hashes[name]:
            return folder / name
        if time.time_ns() - int(before[2]) > SETTLED:
            found[name] = before
    if found:
        remember(folder, {name: entry for name, entry in (known | found).items() if name in hashes})
    return None


def stamp(path: Path, sha256: str) -> list[str | int]:
    """What identifies a file without reading it, beside the hash that it should have."""
    status = path.stat()
    return [sha256, status.st_size, status.st_mtime_ns]


def recall(folder: Path) -> Known:
    """What was found whole before; nothing when that cannot be read."""
    path = folder / MEMORY
    try:
        content = json.loads(path.read_bytes()) if path.stat().st_size <= MOST_BYTES else None
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def remember(folder: Path, known: Known) -> None:
    """Keep it for the next time; where the folder cannot be written, the files are hashed at every start."""
    try:
        write_whole(folder / MEMORY, json.dumps(known).encode())
    except OSError as error:
        reason = error.strerror or error
        console.print(f"{folder / MEMORY}: not kept ({reason}); the files are hashed at every start", markup=False)
