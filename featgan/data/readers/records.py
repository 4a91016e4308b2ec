"""What a layout reader hands to the packer: one record an image, the class names, and what was left out and why."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from featgan.errors import UserError

EXPRESSIONS = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt")
"""The 8 expressions by AffectNet's code."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
"""How image files are told from others where no list names them; in lists any name is taken."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Record:
    """One image file and what is known about it; `split` is "train", "validation" or "" (the packer divides)."""

    key: str
    path: Path
    split: str
    expression: int | None = None
    valence: float | None = None
    arousal: float | None = None
    attributes: dict[str, int] | None = None
    """0 or 1 by name."""
    face_box: Box | None = None
    """x, y, width, height in pixels."""
    factors: dict[str, float] | None = None
    identity: str | None = None


@dataclass
class Layout:
    """All records of one data set."""

    records: list[Record]
    classes: tuple[str, ...]
    """Names of the expressions, or of the classes of a folder, by code; empty where there are none."""
    skipped: Counter[str] = field(default_factory=Counter)
    """How many images were left out, by reason."""
    missing_files: list[str] = field(default_factory=list)
    """Files that a list names and the disk lacks, relative to the source; also counted in `skipped`."""


class Listing:
    """Which files exist, asking the disk once a folder: a stat an image is slow on network file systems."""

    def __init__(self) -> None:
        self.folders: dict[Path, dict[str, str]] = {}

    def names(self, folder: Path) -> dict[str, str]:
        """Lower-case name => name for everything in a folder; empty where there is no such folder."""
        if folder not in self.folders:
            try:
                found = sorted(os.listdir(folder))
            except (FileNotFoundError, NotADirectoryError):
                found = []
            self.folders[folder] = {name.lower(): name for name in found} | {name: name for name in found}
        return self.folders[folder]

    def find(self, path: Path) -> Path | None:
        """The file, or one whose name differs only in upper and lower case, or None."""
        names = self.names(path.parent)
        name = names.get(path.name) or names.get(path.name.lower())
        return path.with_name(name) if name else None


class Collector:
    """Gathers records under unique keys and counts what is left out."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.listing = Listing()
        self.records: list[Record] = []
        self.skipped: Counter[str] = Counter()
        self.missing_files: list[str] = []
        self.taken: dict[str, Record] = {}

    def skip(self, reason: str) -> None:
        self.skipped[reason] += 1

    def add(self, path: Path, split: str, labels: Mapping[str, Any] | None = None) -> None:
        """Take one image, a path below the source, with its labels; a file that is not there is counted."""
        found = self.listing.find(path)
        if found is None:
            self.skip("missing file")
            self.missing_files.append(path.relative_to(self.source).as_posix())
            return
        record = Record("", found, split, **(labels or {}))
        self.records.append(replace(record, key=self.unique_key(record)))

    def unique_key(self, record: Record) -> str:
        """A key of [A-Za-z0-9_-] from the relative path; the same record again gets the same key again."""
        relative = PurePosixPath(record.path.relative_to(self.source).as_posix())
        key = re.sub(r"[^A-Za-z0-9_-]+", "_", str(relative.with_suffix(""))).strip("_") or "image"
        candidates = [key, f"{key}-{hashlib.sha256(str(relative).encode()).hexdigest()[:8]}"]
        number = 2
        while True:
            candidate = candidates.pop(0) if candidates else f"{key}-{number}"
            number += not candidates
            if self.taken.setdefault(candidate, record) == record:
                return candidate

    def finish(self, classes: tuple[str, ...]) -> Layout:
        """The layout; UserError when nothing that is listed is on the disk."""
        if not self.records and self.missing_files:
            count, first = len(self.missing_files), self.missing_files[0]
            raise UserError(f"{self.source}: none of the {count} listed images is there, such as {first}")
        return Layout(self.settle_test_images(), classes, self.skipped, self.missing_files)

    def settle_test_images(self) -> list[Record]:
        """Test images validate where nothing else does; else they are left out, so that they stay unseen."""
        if any(record.split == "validation" for record in self.records):
            kept = [record for record in self.records if record.split != "test"]
            self.skipped["test split"] += len(self.records) - len(kept)
            self.skipped += Counter()  # drops a zero
            return kept
        return [replace(record, split="validation") if record.split == "test" else record for record in self.records]
