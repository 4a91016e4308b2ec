"""Reader of image folders: one sub-folder a class, such as RaFD, or no classes at all."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from featgan.data.readers.parsing import CODES, UNUSABLE, UNUSABLE_NAMES, folder_split, natural_order, squeeze
from featgan.data.readers.records import EXPRESSIONS, IMAGE_SUFFIXES, Collector, Layout
from featgan.errors import UserError

RAFD_NAME = re.compile(r"Rafd\d+_(\d+)_", re.IGNORECASE)
"""RaFD's file names: the second number is the person."""


def read_folder(source: Path) -> Layout:
    """One sub-folder a class, or images without labels; either may lie below train/ and validation/, val/ or test/.

    Classes that are all known expressions get AffectNet's codes, others are numbered in sorted order. UserError when
    no image is there.
    """
    tops = split_folders(source)
    folders = {(split, name): top / name for split, top in tops.items() for name in subfolders(top)}
    names = sorted({name for _, name in folders}, key=natural_order)
    codes, classes = number_classes(names) if names else ({}, ())
    collector = Collector(source)
    for (split, name), folder in folders.items():
        for path in images_among(collector, walk(folder)):
            add_classified(collector, path, split, codes[name], classes)
    for split, top in tops.items():
        for path in images_among(collector, files_in(top)):
            if names:
                collector.skip("in no class folder")
            else:
                add_image(collector, path, split, None)
    if not collector.records:
        where = f"in its {len(names)} class folders" if names else "there, and no sub-folder with images of one class"
        raise UserError(f"{source}: no image is {where}")
    return collector.finish(classes)


def images_among(collector: Collector, paths: Iterable[Path]) -> Iterator[Path]:
    """Those with the suffix of an image; the others are counted."""
    for path in paths:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            yield path
        else:
            collector.skip("not an image's suffix")


def subfolders(folder: Path) -> list[str]:
    return sorted(
        entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith((".", "__"))
    )


def split_folders(source: Path) -> dict[str, Path]:
    """Split => the folder of its classes: the source itself, with split "", where its sub-folders are no splits."""
    names = subfolders(source)
    found = {name: split for name in names if (split := folder_split(name))}
    if "train" not in found.values():
        return {"": source}
    others = [name for name in names if name not in found]
    if others or len(set(found.values())) < len(found):
        what = ", ".join(others or found)
        raise UserError(f"{source}: a train folder may have one validation and one test folder beside it, not {what}")
    return {split: source / name for name, split in found.items()}


def walk(folder: Path) -> list[Path]:
    """Every file below, hidden ones left out, sorted."""
    found = [Path(top) / name for top, _, names in os.walk(folder) for name in names if not name.startswith(".")]
    return sorted(found)


def files_in(folder: Path) -> list[Path]:
    """Every file directly in a folder, hidden ones left out, sorted."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def number_classes(names: Sequence[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """The code of each name (over 7 for AffectNet's unusable ones), and the classes by code."""
    known = CODES | UNUSABLE_NAMES
    if all(squeeze(name) in known for name in names) and any(squeeze(name) in CODES for name in names):
        return {name: known[squeeze(name)] for name in names}, EXPRESSIONS
    return {name: code for code, name in enumerate(names)}, tuple(names)


def add_classified(collector: Collector, path: Path, split: str, code: int, classes: tuple[str, ...]) -> None:
    """Take one image of a class, unless it is one of AffectNet's unusable ones."""
    if code >= len(classes):
        collector.skip(UNUSABLE[code])
    else:
        add_image(collector, path, split, code)


def add_image(collector: Collector, path: Path, split: str, code: int | None) -> None:
    """Take one image, with RaFD's person where the file's name tells."""
    person = RAFD_NAME.match(path.name)
    collector.add(path, split, {"expression": code, "identity": person[1] if person else None})
