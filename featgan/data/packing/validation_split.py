"""The validation split that is created if a data set has none: some images of every class, and no person in both."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

from featgan.data.readers.records import Record

MIN_REQUIRED_SHARE = 0.5
"""Share of the images of a person that must be required; otherwise the next person fits better."""

ClassCounts = Counter[int | None]
"""Number of images by class code; images without a class are counted under None."""


def choose_validation_images(records: Sequence[Record], fraction: float) -> set[str]:
    """Return the keys of the images to use for validation; they depend only on the keys, classes and identities.

    `fraction` of the images of every class are chosen, and at least one of every class with two or more images. At
    least one image of every class remains for training. The images of one person are never divided.
    """
    selection = ValidationSelection(records, fraction)
    groups = group_by_person(records)
    for group in groups:
        selection.add_group(group, min_required=MIN_REQUIRED_SHARE * len(group))
    # A class is still empty if each of its people has many more images than required.
    for group in groups:
        selection.add_group(group, min_required=1, only_empty_classes=True)
    return selection.keys


class ValidationSelection:
    """The images chosen so far, and the number of images of every class that should be chosen."""

    def __init__(self, records: Sequence[Record], fraction: float) -> None:
        self.keys: set[str] = set()
        self.num_images: ClassCounts = Counter(record.expression for record in records)
        self.num_chosen: ClassCounts = Counter()
        self.targets = {
            code: min(max(1, round(fraction * count)), count - 1) if fraction else 0
            for code, count in self.num_images.items()
        }

    def add_group(self, group: Sequence[Record], min_required: float, only_empty_classes: bool = False) -> None:
        """Add a group if at least `min_required` of its images are required and every class keeps an image."""
        if group[0].key in self.keys:
            return
        counts: ClassCounts = Counter(record.expression for record in group)
        num_required = sum(
            min(count, max(0, self.targets[code] - self.num_chosen[code]))
            for code, count in counts.items()
            if not (only_empty_classes and self.num_chosen[code])
        )
        leaves_images = all(self.num_chosen[code] + count < self.num_images[code] for code, count in counts.items())
        if num_required and num_required >= min_required and leaves_images:
            self.keys.update(record.key for record in group)
            self.num_chosen.update(counts)  # += would copy the counts of all classes


def group_by_person(records: Iterable[Record]) -> list[list[Record]]:
    """Return the images of every person, or single images where the person is unknown, in a fixed shuffled order."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        name = f"image {record.key}" if record.identity is None else f"person {record.identity}"
        groups.setdefault(name, []).append(record)
    return [groups[name] for name in sorted(groups, key=hash_name)]


def hash_name(name: str) -> bytes:
    """Return the sha256 of a name; the name of a file in a tar may contain bytes that are not UTF-8."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
