"""The output of a layout reader: one record per image, the class names, and the skipped images with reasons."""

import hashlib
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from featgan.errors import UserError
from featgan.system.image_files import IMAGE_SUFFIXES, has_image_suffix
from featgan.system.locations import Location
from featgan.system.plain_text import format_one_line

EXPRESSIONS = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt")
"""The 8 expressions by AffectNet class code."""

logger = logging.getLogger(__name__)

BoundingBox = tuple[int, int, int, int]
"""x, y, width, height in pixels."""


@dataclass(frozen=True, slots=True)
class TarImage:
    """The position of an image: the tar and its number in the source, offset and size in bytes, and CRC-32."""

    tar: Location
    number: int
    offset: int
    size: int
    crc: int


@dataclass(frozen=True, slots=True)
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
    attributes: dict[str, int | None] | None = None
    """0 or 1, or None if unknown, by name."""
    bounding_box: BoundingBox | None = None
    """Bounding box of the face."""
    factors: dict[str, float] | None = None
    """True factors of a synthetic face, by name."""
    identity: str | None = None
    """Identifier of the person."""
    content: bytes | None = field(default=None, repr=False)
    """Content of an image file if the image is a part of a table; `path` is then the table and the name of the row."""
    tar: TarImage | None = None
    """Position of the image if it is a part of a tar; `path` is then the name of the tar and that of the image."""

    @property
    def has_labels(self) -> bool:
        """Whether anything that a condition can contain is known."""
        attributes = (self.attributes or {}).values()
        return any(label is not None for label in (self.expression, self.valence, self.arousal, *attributes))


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
        self.existing_folders: dict[Path, Path | None] = {}

    def list_names(self, folder: Path) -> dict[str, str]:
        """Return the names in a folder by every form in which a list may write them; empty if there is no folder."""
        if folder not in self.names_by_folder:
            try:
                file_names = sorted(entry.name for entry in os.scandir(folder))
            except (FileNotFoundError, NotADirectoryError):
                file_names = []
            name_by_form = {form: name for name in reversed(file_names) for form in name_forms(name)}
            self.names_by_folder[folder] = name_by_form | {name: name for name in file_names}
        return self.names_by_folder[folder]

    def find_file(self, path: Path) -> Path | None:
        """Return the path of a listed file, or None if it does not exist.

        If there is no exact match, case and the encoding of the name are ignored, and a missing suffix is added.
        """
        folder = path.parent if self.list_names(path.parent) else self.find_folder(path.parent)
        if folder is None:
            return None
        names = self.list_names(folder)
        forms = [path.name, *name_forms(path.name), unquote(path.name)]
        if not has_image_suffix(path.name):
            forms += [f"{path.name.lower()}{suffix}" for suffix in IMAGE_SUFFIXES]
        forms.append(f"{path.stem}_aligned{path.suffix}".lower())  # the aligned images of RAF-DB
        return next((folder / names[form] for form in forms if form in names), None)

    def find_folder(self, folder: Path) -> Path | None:
        """Return a listed folder under the name that it has on disk, or None if it does not exist."""
        if folder not in self.existing_folders:
            parent = folder.parent if self.list_names(folder.parent) else None
            if parent is None and folder.parent != folder:
                parent = self.find_folder(folder.parent)
            names = self.list_names(parent) if parent else {}
            name = next((names[form] for form in (folder.name, *name_forms(folder.name)) if form in names), None)
            self.existing_folders[folder] = parent / name if parent and name else None
        return self.existing_folders[folder]


def name_forms(name: str) -> tuple[str, ...]:
    """Return forms of a file name that other systems write: lower case, composed accents, Windows-1252."""
    if name.isascii():
        return (name.lower(),)
    composed = unicodedata.normalize("NFC", name)
    try:
        windows = os.fsencode(name).decode("cp1252") if not name.isprintable() else composed
    except UnicodeDecodeError:
        windows = composed
    return (composed, composed.lower(), windows, windows.lower())


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
            self.missing_files.append(format_one_line(path.relative_to(self.source).as_posix()))
            return
        record = Record("", existing_path, split, **(labels or {}))
        self.records.append(replace(record, key=self.make_unique_key(record)))

    def add_content(self, path: Path, content: bytes, split: str, labels: Mapping[str, Any]) -> None:
        """Add one image that is not a file; `path` is a path below the source that names it."""
        record = Record("", path, split, content=content, **labels)
        self.records.append(replace(record, key=self.make_unique_key(record)))

    def make_unique_key(self, record: Record) -> str:
        """Return a key of [A-Za-z0-9_-] made from the relative path; an identical record gets the same key."""
        relative = PurePosixPath(record.path.relative_to(self.source).as_posix())
        key = re.sub(r"[^A-Za-z0-9_-]+", "_", str(relative.with_suffix(""))).strip("_") or "image"
        candidates = [key, f"{key}-{hashlib.sha256(os.fsencode(str(relative))).hexdigest()[:8]}"]
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
        self.remove_unlabeled_splits()
        records = use_test_images(self.records, self.skipped)
        return DatasetListing(records, classes, self.skipped, self.missing_files)

    def remove_unlabeled_splits(self) -> None:
        """Skip a validation or test split without labels if other images have some, as in a competition."""
        labeled_splits = {record.split for record in self.records if record.has_labels}
        for split in ("validation", "test") if labeled_splits else ():
            unlabeled = [record for record in self.records if record.split == split]
            if unlabeled and split not in labeled_splits:
                self.skipped[f"{split} split without labels"] += len(unlabeled)
                self.records = [record for record in self.records if record.split != split]


def use_test_images(records: Sequence[Record], skipped: Counter[str]) -> list[Record]:
    """Use test images for validation if there is no validation split; otherwise skip them, so they stay unseen."""
    if any(record.split == "validation" for record in records):
        remaining = [record for record in records if record.split != "test"]
        if len(remaining) < len(records):
            skipped["test split"] += len(records) - len(remaining)
        return remaining
    if any(record.split == "test" for record in records):
        logger.info("the source has no validation split, so its test images are used for validation")
    return [replace(record, split="validation") if record.split == "test" else record for record in records]
