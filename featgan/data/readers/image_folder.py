"""Reader of image folders: one subfolder per class, such as RaFD, or images without classes."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from featgan.data.readers.parsing import (
    EXPRESSION_CODES,
    UNUSABLE_CODES,
    UNUSABLE_EXPRESSIONS,
    natural_sort_key,
    normalize_word,
    split_from_folder_name,
)
from featgan.data.readers.records import EXPRESSIONS, DatasetListing, RecordCollector
from featgan.errors import UserError
from featgan.system.image_files import IMAGE_SUFFIXES

RAFD_NAME_PATTERN = re.compile(r"Rafd\d+_(\d+)_", re.IGNORECASE)
"""Pattern of RaFD file names; the second number identifies the person."""


def read_class_folders(source: Path) -> DatasetListing:
    """Read one subfolder per class, or images without labels; both may be in train/ and validation/, val/ or test/.

    If all class names are known expressions, they get AffectNet class codes. Otherwise, classes are numbered in sorted
    order. Raises UserError if there are no images.
    """
    split_roots = find_split_folders(source)
    folders = {(split, name): root / name for split, root in split_roots.items() for name in list_subfolders(root)}
    names = sorted({name for _, name in folders}, key=natural_sort_key)
    codes, classes = assign_class_codes(names) if names else ({}, ())
    collector = RecordCollector(source)
    for (split, name), folder in folders.items():
        for path in filter_images(collector, list_files_below(folder)):
            add_class_image(collector, path, split, codes[name], classes)
    for split, top in split_roots.items():
        for path in filter_images(collector, list_files_in(top)):
            if names:
                collector.count_skipped("not in a class folder")
            else:
                add_image(collector, path, split, None)
    if not collector.records:
        problem = f"no images in its {len(names)} class folders" if names else "no images and no class folders"
        raise UserError(f"{source}: {problem}; give a folder with one subfolder of images per class")
    return collector.build_listing(classes)


def filter_images(collector: RecordCollector, paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the paths with the suffix of an image, and count the others as skipped."""
    for path in paths:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            yield path
        else:
            collector.count_skipped("not an image suffix")


def list_subfolders(folder: Path) -> list[str]:
    """Return the names of the visible subfolders, sorted."""
    return sorted(
        entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith((".", "__"))
    )


def find_split_folders(source: Path) -> dict[str, Path]:
    """Return the folder of each split, or {"": source} if the subfolders are not splits.

    Raises UserError if other folders are next to the train folder.
    """
    names = list_subfolders(source)
    splits_by_name = {name: split for name in names if (split := split_from_folder_name(name))}
    if "train" not in splits_by_name.values():
        return {"": source}
    other_names = [name for name in names if name not in splits_by_name]
    if other_names or len(set(splits_by_name.values())) < len(splits_by_name):
        listed_names = ", ".join(other_names or splits_by_name)
        raise UserError(
            f"{source}: only one validation and one test folder may be next to the train folder, not {listed_names}"
        )
    return {split: source / name for name, split in splits_by_name.items()}


def list_files_below(folder: Path) -> list[Path]:
    """Return all visible files below a folder, sorted."""
    paths = [Path(root) / name for root, _, names in os.walk(folder) for name in names if not name.startswith(".")]
    return sorted(paths)


def list_files_in(folder: Path) -> list[Path]:
    """Return all visible files directly in a folder, sorted."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def assign_class_codes(names: Sequence[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the code of each name (above 7 for unusable AffectNet classes) and the class names by code."""
    known_codes = EXPRESSION_CODES | UNUSABLE_CODES
    if all(normalize_word(name) in known_codes for name in names) and any(
        normalize_word(name) in EXPRESSION_CODES for name in names
    ):
        return {name: known_codes[normalize_word(name)] for name in names}, EXPRESSIONS
    return {name: code for code, name in enumerate(names)}, tuple(names)


def add_class_image(collector: RecordCollector, path: Path, split: str, code: int, classes: tuple[str, ...]) -> None:
    """Add one image of a class, or skip it if the class is an unusable AffectNet class."""
    if code >= len(classes):
        collector.count_skipped(UNUSABLE_EXPRESSIONS[code])
    else:
        add_image(collector, path, split, code)


def add_image(collector: RecordCollector, path: Path, split: str, code: int | None) -> None:
    """Add one image, with its identity if the file name follows the RaFD pattern."""
    person = RAFD_NAME_PATTERN.match(path.name)
    collector.add_image(path, split, {"expression": code, "identity": person[1] if person else None})
