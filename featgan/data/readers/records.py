"""The output of a layout reader: one record per image, the class names, and the skipped images with reasons."""

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
"""The 8 expressions by AffectNet class code."""

BoundingBox = tuple[int, int, int, int]
"""x, y, width, height in pixels."""


@dataclass(frozen=True)
class Record:
    """One image file with its labels.

    `split` is "train", "validation" or "test", or "" if the layout has no splits: the packer then assigns one.
    """

    key: str
    path: Path
    split: str
    expression: int | None = None
    valence: float | None = None
    arousal: float | None = None
    attributes: dict[str, int] | None = None
    """0 or 1, by name."""
    bounding_box: BoundingBox | None = None
    """Bounding box of the face."""
    factors: dict[str, float] | None = None
    """True factors of a synthetic face, by name."""
    identity: str | None = None
    """Identifier of the person."""


@dataclass
class DatasetListing:
    """All records of one data set, as returned by a reader."""

    records: list[Record]
    classes: tuple[str, ...]
    """Class names by class code; empty if the data set has no classes."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Number of skipped images, by reason."""
    missing_files: list[str] = field(default_factory=list)
    """Listed files that do not exist, relative to the source; they are also counted in `skipped`."""


class DirectoryCache:
    """A cache of directory listings; checking every image separately is slow on network file systems."""

    def __init__(self) -> None:
        self.names_by_folder: dict[Path, dict[str, str]] = {}

    def list_names(self, folder: Path) -> dict[str, str]:
        """Return the names in a folder, by exact and by lower-case name; empty if the folder does not exist."""
        if folder not in self.names_by_folder:
            try:
                file_names = sorted(entry.name for entry in os.scandir(folder))
            except (FileNotFoundError, NotADirectoryError):
                file_names = []
            self.names_by_folder[folder] = {name.lower(): name for name in file_names} | {
                name: name for name in file_names
            }
        return self.names_by_folder[folder]

    def find_file(self, path: Path) -> Path | None:
        """Return the path of a file, ignoring case if there is no exact match, or None if it does not exist."""
        names = self.list_names(path.parent)
        name = names.get(path.name) or names.get(path.name.lower())
        return path.with_name(name) if name else None


class RecordCollector:
    """Collects records with unique keys and counts skipped images."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.directory_cache = DirectoryCache()
        self.records: list[Record] = []
        self.skipped: Counter[str] = Counter()
        self.missing_files: list[str] = []
        self.record_by_key: dict[str, Record] = {}

    def count_skipped(self, reason: str) -> None:
        """Count one skipped image."""
        self.skipped[reason] += 1

    def add_image(self, path: Path, split: str, labels: Mapping[str, Any] | None = None) -> None:
        """Add one image, a path below the source, with its labels; a missing file is counted as skipped."""
        existing_path = self.directory_cache.find_file(path)
        if existing_path is None:
            self.count_skipped("missing file")
            self.missing_files.append(path.relative_to(self.source).as_posix())
            return
        record = Record("", existing_path, split, **(labels or {}))
        self.records.append(replace(record, key=self.make_unique_key(record)))

    def make_unique_key(self, record: Record) -> str:
        """Return a key of [A-Za-z0-9_-] made from the relative path; an identical record gets the same key."""
        relative = PurePosixPath(record.path.relative_to(self.source).as_posix())
        key = re.sub(r"[^A-Za-z0-9_-]+", "_", str(relative.with_suffix(""))).strip("_") or "image"
        candidates = [key, f"{key}-{hashlib.sha256(str(relative).encode()).hexdigest()[:8]}"]
        number = 2
        while True:
            candidate = candidates.pop(0) if candidates else f"{key}-{number}"
            number += not candidates
            if self.record_by_key.setdefault(candidate, record) == record:
                return candidate

    def build_listing(self, classes: tuple[str, ...]) -> DatasetListing:
        """Return the listing. Raises UserError if none of the listed files exists."""
        if not self.records and self.missing_files:
            count, first = len(self.missing_files), self.missing_files[0]
            raise UserError(
                f"{self.source}: none of the {count} listed images exists, such as {first}; check the paths in the list"
            )
        return DatasetListing(self.assign_test_images(), classes, self.skipped, self.missing_files)

    def assign_test_images(self) -> list[Record]:
        """Use test images for validation if there is no validation split; otherwise skip them, so they stay unseen."""
        if any(record.split == "validation" for record in self.records):
            remaining = [record for record in self.records if record.split != "test"]
            self.skipped["test split"] += len(self.records) - len(remaining)
            self.skipped += Counter()  # drops a zero
            return remaining
        return [replace(record, split="validation") if record.split == "test" else record for record in self.records]
