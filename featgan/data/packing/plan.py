"""What is packed, in which order and split, under which key: decided before the first image is read."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from featgan.data.readers.registry import Layout, Record
from featgan.data.shards.manifest import SplitName
from featgan.errors import UserError

SPLITS: tuple[SplitName, ...] = get_args(SplitName)
MOST_KEY_LENGTH = 80
SAFE_KEY = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")


@dataclass(frozen=True)
class Item:
    """A record with its final key and split, and its path below the source."""

    key: str
    split: SplitName
    source: str
    record: Record

    @property
    def labels(self) -> dict[str, Any]:
        """What KEY.json holds; null where unknown."""
        record = self.record
        return {
            "expression": record.expression,
            "valence": record.valence,
            "arousal": record.arousal,
            "attributes": record.attributes,
            "factors": record.factors,
            "identity": record.identity,
            "source": self.source,
            "split": self.split,
        }


def plan(layout: Layout, source: Path, validation_fraction: float, limit: int | None) -> tuple[list[Item], int]:
    """Every record once, in the order of the shards, and how many were listed twice.

    Each gets a key that WebDataset can hold and a split. The order within a split is that of the keys' hashes:
    mixed, yet the same for every order of the listing.
    """
    items: dict[str, Item] = {}
    for record in layout.records:
        path = Path(os.path.relpath(record.path, source)).as_posix()
        item = Item(safe_key(record.key), choose_split(record, validation_fraction), path, record)
        if items.setdefault(item.key, item).record != record:
            raise UserError(f"{source}: two records are called {record.key!r} ({items[item.key].source} and {path})")
    if not items:
        left_out = ", ".join(f"{count} {reason}" for reason, count in layout.skipped.items())
        raise UserError(f"{source}: nothing to pack" + (f" ({left_out} left out)" if left_out else ""))
    mixed = sorted(items.values(), key=lambda item: digest(item.key))[:limit]
    by_split = sorted(mixed, key=lambda item: SPLITS.index(item.split))
    return by_split, len(layout.records) - len(items)


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def safe_key(key: str) -> str:
    """The key itself, or where a tar or WebDataset could not hold it, what can be held of it and a hash."""
    if len(key) <= MOST_KEY_LENGTH and SAFE_KEY.fullmatch(key):
        return key
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", key).strip("_")
    return f"{readable[: MOST_KEY_LENGTH - 13]}-{digest(key).hex()[:12]}".lstrip("-")


def choose_split(record: Record, validation_fraction: float) -> SplitName:
    """The record's own split, or one by the hash of its person, so that nobody is in both."""
    for split in SPLITS:
        if record.split == split:
            return split
    assert not record.split, record.split
    share = int.from_bytes(digest(f"split {record.identity or record.key}")[:8]) / 2**64
    return "validation" if share < validation_fraction else "train"


def hash_listing(items: Sequence[Item]) -> str:
    """sha256 over every item's key, labels, face box and file size: what the shards are made of."""
    total = hashlib.sha256()
    for item in items:
        try:
            size = item.record.path.stat().st_size
        except OSError:
            size = -1
        total.update(json_bytes([item.key, item.labels, item.record.face_box, size]))
    return total.hexdigest()


def json_bytes(value: Any) -> bytes:
    """One line of JSON, the same for equal values."""
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":")).encode() + b"\n"
