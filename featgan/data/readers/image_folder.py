"""Reader of image folders: one subfolder per class, such as RaFD, or images without classes."""

import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from featgan.data.readers.class_codes import ClassCodes, assign_class_codes, spelling_of
from featgan.data.readers.image_paths import raise_error
from featgan.data.readers.parsing import split_from_folder_name
from featgan.data.readers.records import DatasetListing, RecordCollector
from featgan.data.shards.manifest import MANIFEST_FILE
from featgan.errors import UserError
from featgan.system.image_files import has_image_suffix, is_system_file
from featgan.system.plain_text import format_one_line

logger = logging.getLogger(__name__)

RAFD_NAME_PATTERN = re.compile(r"Rafd\d+_(\d+)_", re.IGNORECASE)
"""Pattern of RaFD file names; the second number identifies the person."""

MAX_FOLDER_DEPTH = 50
"""Maximum depth of the folders inside a class folder."""


def read_class_folders(source: Path, classes: str | Sequence[str] = "") -> DatasetListing:
    """Read one subfolder per class, or images without labels; both may be in train/ and validation/, val/ or test/.

    `classes` defines the names of the classes, see `assign_class_codes`. A test folder without any of the class folders
    of the train folder contains images without labels. Raises UserError if there are no images.
    """
    split_roots = find_split_folders(source)
    unlabeled_splits = find_unlabeled_splits(split_roots)
    folders = {
        (split, name): root / name
        for split, root in split_roots.items()
        if split not in unlabeled_splits
        for name in list_subfolders(root)
    }
    names = {name for _, name in folders}
    codes = assign_class_codes(names, classes, source)
    collector = RecordCollector(source)
    for (split, name), folder in folders.items():
        for path in filter_images(collector, list_files_below(collector, folder)):
            add_class_image(collector, path, split, name, codes)
    for split, root in split_roots.items():
        paths = list_files_below(collector, root) if split in unlabeled_splits else list_files_in(root)
        for path in filter_images(collector, paths):
            if names and split not in unlabeled_splits:
                collector.count_skipped("not in a class folder")
            else:
                add_image(collector, path, split, None)
    if not collector.records:
        problem = f"no images in its {len(names)} class folders" if names else "no images and no class folders"
        raise UserError(f"{source}: {problem}; give a folder with one subfolder of images per class")
    return collector.build_listing(codes.names if names else ())


def filter_images(collector: RecordCollector, paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the paths with the suffix of an image, and count the others as skipped."""
    for path in paths:
        if has_image_suffix(path.name):
            yield path
        else:
            collector.count_skipped("not an image suffix")


def list_subfolders(folder: Path) -> list[str]:
    """Return the names of the visible subfolders, sorted; links to folders are included, packed shards are not."""
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.is_dir() and not entry.name.startswith("__") and not is_system_file(entry.name)
        if not is_shard_folder(Path(entry.path))
    )


def is_shard_folder(folder: Path) -> bool:
    """Return whether a folder contains packed shards; the output of `featgan pack` can be inside of the source."""
    return all(os.access(folder / name, os.R_OK) for name in (MANIFEST_FILE, "train-00000.tar"))


def find_split_folders(source: Path) -> dict[str, Path]:
    """Return the folder of each split, or {"": source} if the subfolders are not splits.

    If the source contains only one folder, and that contains only folders, as in many archives, that folder is used.
    Raises UserError if other folders are next to the train folder.
    """
    names = list_subfolders(source)
    splits_by_name = {name: split for name in names if (split := split_from_folder_name(name))}
    if "train" not in splits_by_name.values():
        if len(names) == 1 and not has_images(source) and is_wrapper_folder(source / names[0]):
            logger.info(f"{source}: contains one folder only; using {format_one_line(names[0])}")
            return find_split_folders(source / names[0])
        return {"": source}
    other_names = [name for name in names if name not in splits_by_name]
    if other_names and not any(list_subfolders(source / name) for name in splits_by_name):
        return {"": source}  # a class called train, next to other vehicles
    if other_names or len(set(splits_by_name.values())) < len(splits_by_name):
        listed_names = ", ".join(other_names or splits_by_name)
        raise UserError(
            f"{source}: only one validation and one test folder may be next to the train folder, not {listed_names}"
        )
    return {split: enter_equal_folder(source / name) for name, split in splits_by_name.items()}


def is_wrapper_folder(folder: Path) -> bool:
    """Return whether a folder contains folders and no images, so that it is not a class folder."""
    return bool(list_subfolders(folder)) and not has_images(folder)


def has_images(folder: Path) -> bool:
    """Return whether a folder contains images, apart from those in its subfolders."""
    return any(has_image_suffix(entry.name) and not is_system_file(entry.name) for entry in os.scandir(folder))


def enter_equal_folder(folder: Path) -> Path:
    """Return the innermost folder of `train/train/...` or `train/images/...`, as some archives are unpacked."""
    while (names := list_subfolders(folder)) in ([folder.name], ["images"]) and not has_images(folder):
        folder /= names[0]
    return folder


def find_unlabeled_splits(split_roots: dict[str, Path]) -> set[str]:
    """Return the splits without any class folder of the train folder, if that has some, as in a competition."""
    train_names = list_class_spellings(split_roots["train"]) if "train" in split_roots else set()
    if len(train_names) < 2:
        return set()
    return {split for split, root in split_roots.items() if not train_names & list_class_spellings(root)}


def list_class_spellings(folder: Path) -> set[str | int]:
    """Return the class folders of a folder in a form that all spellings have in common."""
    return {spelling_of(name) for name in list_subfolders(folder)}


def list_files_below(collector: RecordCollector, folder: Path) -> list[Path]:
    """Return all visible files below a folder, sorted.

    Links to folders are followed. A folder that is reached a second time, or that contains `folder`, is left out, so
    that links cannot form a loop.
    """
    seen = {folder_identity(parent) for parent in (folder, *folder.absolute().parents)}
    paths: list[Path] = []
    for root, folder_names, names in os.walk(folder, onerror=raise_error, followlinks=True):
        paths += [Path(root) / name for name in names if not is_system_file(name)]
        visible_names = sorted(name for name in folder_names if not is_system_file(name))
        folder_names.clear()
        for name in visible_names:
            identity = folder_identity(Path(root) / name)
            if identity in seen or len(Path(root).parts) - len(folder.parts) >= MAX_FOLDER_DEPTH:
                collector.count_skipped("folder that is linked twice")
            else:
                seen.add(identity)
                folder_names.append(name)
    return sorted(paths)


def folder_identity(folder: Path) -> tuple[int, int]:
    """Return the device and the number of a folder; all links to it have the same ones."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def list_files_in(folder: Path) -> list[Path]:
    """Return all visible files directly in a folder, sorted."""
    return sorted(path for path in folder.iterdir() if not path.is_dir() and not is_system_file(path.name))


def add_class_image(collector: RecordCollector, path: Path, split: str, name: str, codes: ClassCodes) -> None:
    """Add one image of a class, or skip it if the class is an unusable AffectNet class."""
    if reason := codes.find_skip_reason(name):
        collector.count_skipped(reason)
    else:
        add_image(collector, path, split, codes.find_code(name, f"{collector.source / name}"))


def add_image(collector: RecordCollector, path: Path, split: str, code: int | None) -> None:
    """Add one image, with its identity if the file name follows the RaFD pattern."""
    person = RAFD_NAME_PATTERN.match(path.name)
    collector.add_image(path, split, {"expression": code, "identity": person[1] if person else None})
