"""When each cached file is used next, as the users of a cache publish it, and which files are removed first.

A user of a cache is a running process. It publishes its plan in a file, and the others read it when they need room.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featgan.errors import UserError
from featgan.system.files import atomic_write, read_regular_file
from featgan.system.limits import MAX_SHARDS

PLAN_ENTRY = np.dtype([("sha256", "V32"), ("next_use", "<f4"), ("is_pinned", "u1")])
"""One entry of a plan file."""

MAX_PLAN_BYTES = 8 * MAX_SHARDS * PLAN_ENTRY.itemsize
"""Size of a plan in bytes: a tar, features and outputs for each shard of two data sets."""


@dataclass(frozen=True)
class PlannedUse:
    """The next use of a file in a plan: after how many images, and whether it should not be removed before."""

    sha256: str
    next_use: float
    is_pinned: bool = False

    def earlier(self, other: "PlannedUse") -> "PlannedUse":
        """Combine two uses of one file."""
        return PlannedUse(self.sha256, min(self.next_use, other.next_use), self.is_pinned or other.is_pinned)


def write_plan(path: Path, uses: Sequence[PlannedUse]) -> None:
    """Write a plan; readers see the old or the new one."""
    entries = np.array([(bytes.fromhex(use.sha256), use.next_use, use.is_pinned) for use in uses], PLAN_ENTRY)
    atomic_write(path, entries.tobytes())


def read_plan(path: Path) -> list[PlannedUse]:
    """Read a plan; it is empty if it was not published or is damaged, because a plan only makes a cache faster."""
    try:
        content = read_regular_file(path, MAX_PLAN_BYTES)
    except (OSError, UserError):
        return []
    if len(content) % PLAN_ENTRY.itemsize:
        return []
    entries = np.frombuffer(content, PLAN_ENTRY).tolist()
    return [
        PlannedUse(sha256.hex(), math.inf if math.isnan(next_use) else next_use, bool(is_pinned))
        for sha256, next_use, is_pinned in entries
    ]


def merge_plans(plans: Iterable[Sequence[PlannedUse]]) -> dict[str, PlannedUse]:
    """Return the earliest use of each file in the plans of all users, by sha256."""
    merged: dict[str, PlannedUse] = {}
    for use in (use for plan in plans for use in plan):
        known_use = merged.get(use.sha256)
        merged[use.sha256] = use if known_use is None else use.earlier(known_use)
    return merged


@dataclass(frozen=True)
class CachedObject:
    """A cached file: its sha256, its size in bytes, and when it was last opened, in nanoseconds."""

    sha256: str
    bytes: int
    last_use: int


def removal_order(
    objects: Iterable[CachedObject], uses: Mapping[str, PlannedUse], include_pinned: bool
) -> list[CachedObject]:
    """Return the files that may be removed, those whose next use is the farthest first (Belady's algorithm).

    A file in no plan comes first; of several, the one that was not opened for the longest time. Pinned files are left
    out, or come last.
    """

    def priority(candidate: CachedObject) -> tuple[bool, float, int]:
        use = uses.get(candidate.sha256, PlannedUse(candidate.sha256, math.inf))
        return use.is_pinned, -use.next_use, candidate.last_use

    candidates = sorted(objects, key=priority)
    return [
        candidate
        for candidate in candidates
        if include_pinned or candidate.sha256 not in uses or not uses[candidate.sha256].is_pinned
    ]
