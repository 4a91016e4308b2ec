"""Reader of CelebA: the list of attributes, and the official partition and identities if present."""

from collections.abc import Iterable
from pathlib import Path

from featgan.data.readers.parsing import parse_attribute, parse_split, resolve_path_below
from featgan.data.readers.records import DatasetListing, RecordCollector
from featgan.data.readers.text_tables import read_lines
from featgan.errors import UserError

ATTRIBUTES_FILE = "list_attr_celeba.txt"
LIST_FOLDERS = (".", "Anno", "Eval")
IMAGE_FOLDERS = ("img_align_celeba", "Img/img_align_celeba", "images", ".")


def read_celeba(source: Path, images: str = "") -> DatasetListing:
    """Read `list_attr_celeba.txt`, and `list_eval_partition.txt` and `identity_CelebA.txt` if present.

    `images` is the folder of the images below `source`; by default, the usual folder names are tried.
    """
    attributes = find_list_file(source, ATTRIBUTES_FILE)
    if attributes is None:
        raise UserError(f"{source}: no {ATTRIBUTES_FILE}; copy it from CelebA (folder Anno) into this folder")
    splits = {
        name: parse_split(value, location)
        for name, value, location in read_value_list(source, "list_eval_partition.txt")
    }
    identities = {name: value for name, value, _ in read_value_list(source, "identity_CelebA.txt")}
    default_folders = [source / name for name in IMAGE_FOLDERS]
    folders = [resolve_path_below(source, images, "--layout-option images")] if images else default_folders
    folder = next((path for path in folders if path.is_dir()), None)
    if folder is None:
        raise UserError(f"{folders[0]}: no such image folder; name it with --layout-option images=FOLDER")
    collector = RecordCollector(source)
    for name, values, location in read_attributes(attributes):
        labels = {"attributes": values, "identity": identities.get(name)}
        collector.add_image(resolve_path_below(folder, name, location), splits.get(name, ""), labels)
    return collector.build_listing(())


def find_list_file(source: Path, name: str) -> Path | None:
    """Return the path of a list in the source or in one of CelebA's folders, or None."""
    return next((path for folder in LIST_FOLDERS if (path := source / folder / name).is_file()), None)


def read_value_list(source: Path, name: str) -> Iterable[tuple[str, str, str]]:
    """Yield (file, value, location) from an optional list with one value per image."""
    path = find_list_file(source, name)
    for location, line in read_lines(path) if path else ():
        cells = line.split()
        if len(cells) != 2:
            raise UserError(
                f"{location}: {len(cells)} words, but a file name and a value are required; correct this line"
            )
        yield cells[0], cells[1], location


def read_attributes(path: Path) -> Iterable[tuple[str, dict[str, int], str]]:
    """Yield (file, attributes, location) for every image.

    Raises UserError if the number of images differs from the first line of the list.
    """
    lines = iter(read_lines(path))
    location, first_line = next(lines, (str(path), ""))
    if not first_line.strip().isdigit():
        raise UserError(f"{location}: the first line must contain the number of images; add it")
    names = next(lines, ("", ""))[1].split()
    if not names:
        raise UserError(f"{path}: the second line must contain the attribute names; add them")
    count = 0
    for location, line in lines:
        name, *values = line.split()
        if len(values) != len(names):
            raise UserError(
                f"{location}: {len(values)} values, but the list has {len(names)} attributes; correct this line"
            )
        yield (
            name,
            {key: parse_attribute(value, location, key) for key, value in zip(names, values, strict=True)},
            location,
        )
        count += 1
    if count != int(first_line):
        raise UserError(
            f"{path}: {count} images, but the first line declares {first_line.strip()}; "
            "copy the file again if it is truncated"
        )
