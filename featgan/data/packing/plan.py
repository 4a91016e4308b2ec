"""The packing plan: the key, split and order of every image, fixed before the first image is read."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from featgan.data.packing.validation_split import choose_validation_images
from featgan.data.readers.records import DatasetListing, Record
from featgan.data.shards.manifest import SplitName
from featgan.errors import UserError
from featgan.system.plain_text import format_one_line

SPLITS: tuple[SplitName, ...] = get_args(SplitName)
MAX_KEY_LENGTH = 80
SAFE_KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """A record with its final key and split, and its path relative to the source."""

    key: str
    split: SplitName
    relative_path: str
    record: Record

    @property
    def labels(self) -> dict[str, Any]:
        """Content of KEY.json; null if unknown."""
        record = self.record
        return {
            "expression": record.expression,
            "valence": record.valence,
            "arousal": record.arousal,
            "attributes": record.attributes,
            "factors": record.factors,
            "identity": record.identity,
            "source": self.relative_path,
            "split": self.split,
        }


def plan_packing(
    listing: DatasetListing, source: Path, validation_fraction: float, max_images: int | None
) -> tuple[list[PlannedImage], int]:
    """Return every record once, in the order of the shards, and the number of duplicates.

    Each record gets a split and a key that is valid in WebDataset. Within a split, images are ordered by the hash of
    their key: this shuffles them, independently of the order of the listing. Images in tars keep their order, because
    tars are read from start to end. If `max_images` is given, only the first images of the shuffled order are used. If
    none of them is a validation image, `validation_fraction` of them become validation images.

    Raises UserError if nothing is left to pack or if two different records have the same key.
    """
    items: dict[str, PlannedImage] = {}
    for record in listing.records:
        path = format_one_line(Path(os.path.relpath(record.path, source)).as_posix())
        item = PlannedImage(make_safe_key(record.key), "train", path, record)
        if items.setdefault(item.key, item).record != record:
            raise UserError(
                f"{source}: two different records have the key {record.key!r} "
                f"({items[item.key].relative_path} and {path}); rename one of the files"
            )
    if not items:
        skipped_text = ", ".join(f"{count} {reason}" for reason, count in listing.skipped.items())
        skipped_text = f" (skipped: {skipped_text})" if skipped_text else ""
        raise UserError(f"{source}: no images to pack{skipped_text}; check the folder and the layout")
    shuffled = sorted(items.values(), key=lambda item: hash_text(item.key))[:max_images]
    planned = assign_splits(shuffled, validation_fraction)
    ordered = sorted(planned, key=lambda item: SPLITS.index(item.split))
    if any(item.record.tar is not None for item in ordered):
        ordered.sort(key=lambda item: tar_position(item.record))
    return ordered, len(listing.records) - len(items)


def tar_position(record: Record) -> tuple[int, int]:
    """Return the tar and the offset of an image; tars are read from start to end."""
    return (record.tar.number, record.tar.offset) if record.tar is not None else (0, 0)


def assign_splits(items: Sequence[PlannedImage], validation_fraction: float) -> list[PlannedImage]:
    """Return the images with their splits; a validation split is created if none of them is a validation image."""
    validation_keys = {item.record.key for item in items if item.record.split == "validation"}
    if not validation_keys:
        validation_keys = choose_validation_images([item.record for item in items], validation_fraction)
    return [replace(item, split="validation" if item.record.key in validation_keys else "train") for item in items]


def hash_text(text: str) -> bytes:
    """Return the sha256 of a text."""
    return hashlib.sha256(os.fsencode(text)).digest()


def make_safe_key(key: str) -> str:
    """Return the key itself, or a readable part of it and a hash if it is not valid in a tar or in WebDataset."""
    if len(key) <= MAX_KEY_LENGTH and SAFE_KEY_PATTERN.fullmatch(key):
        return key
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", key).strip("_")
    return f"{readable[: MAX_KEY_LENGTH - 13]}-{hash_text(key).hex()[:12]}".lstrip("-")


def hash_planned_images(items: Sequence[PlannedImage]) -> str:
    """Return a sha256 over the key, labels, bounding box and file size of every image.

    For images in tables and tars, it also covers the content.
    """
    hasher = hashlib.sha256()
    for item in items:
        hasher.update(item.record.content or b"")
        if item.record.tar is not None:
            hasher.update(item.record.tar.crc.to_bytes(4, "big"))
        size = file_size(item.record)
        hasher.update(encode_json_line([item.key, item.labels, item.record.bounding_box, size]))
    return hasher.hexdigest()


def file_size(record: Record) -> int:
    """Return the size of an image file in bytes; -1 if it is missing."""
    if record.tar is not None:
        return record.tar.size
    try:
        return record.path.stat().st_size if record.content is None else len(record.content)
    except OSError:
        return -1


def encode_json_line(value: Any) -> bytes:
    """Encode a value as one line of JSON; equal values produce equal bytes."""
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":")).encode() + b"\n"
