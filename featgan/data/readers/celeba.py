"""Reader of CelebA: the list of attributes, and the official partition and identities if present.

The lists are the text files of CelebA or the CSV files of Kaggle's copy.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from featgan.data.readers.image_paths import find_image_paths
from featgan.data.readers.parsing import parse_attribute, parse_split, resolve_path_below
from featgan.data.readers.records import DatasetListing, RecordCollector
from featgan.data.readers.text_tables import TextTable, read_lines
from featgan.errors import UserError

ATTRIBUTES_LIST = "list_attr_celeba"
PARTITION_LIST = "list_eval_partition"
IDENTITIES_LIST = "identity_CelebA"
LIST_FOLDERS = (".", "Anno", "Eval")
LIST_SUFFIXES = (".txt", ".csv")
IMAGE_FOLDERS = (
    "img_align_celeba",
    "img_align_celeba/img_align_celeba",
    "Img/img_align_celeba",
    "images",
    ".",
    "Img/img_align_celeba_png",
)


def read_celeba(source: Path, images: str = "") -> DatasetListing:
    """Read `list_attr_celeba`, and `list_eval_partition` and `identity_CelebA` if present, as .txt or .csv files.

    `images` is the folder of the images below `source`; by default, the usual folder names are tried.
    """
    attributes = find_list_file(source, ATTRIBUTES_LIST)
    if attributes is None:
        raise UserError(
            f"{source}: neither {ATTRIBUTES_LIST}.txt nor {ATTRIBUTES_LIST}.csv; "
            "copy one of them from CelebA (folder Anno) into this folder"
        )
    splits = {name: parse_split(value, location) for name, value, location in read_value_list(source, PARTITION_LIST)}
    identities = {name: value for name, value, _ in read_value_list(source, IDENTITIES_LIST)}
    folders = [source / name for name in IMAGE_FOLDERS if (source / name).is_dir()]
    if images:
        folders = [resolve_path_below(source, images, "--layout-option images")]
    if not folders or not folders[0].is_dir():
        folder = folders[0] if folders else source / IMAGE_FOLDERS[0]
        raise UserError(f"{folder}: no such image folder; name it with --layout-option images=FOLDER")
    collector = RecordCollector(source)
    paths = find_image_paths(collector, folders, (name for name, _, _ in read_attributes(attributes)))
    for name, values, location in read_attributes(attributes):
        labels = {"attributes": values, "identity": identities.get(name)}
        collector.add_image(paths.resolve(name, location), splits.get(name, ""), labels)
    return collector.build_listing(())


def find_list_file(source: Path, name: str) -> Path | None:
    """Return the path of a list in the source or in one of CelebA's folders, or None."""
    paths = (source / folder / f"{name}{suffix}" for suffix in LIST_SUFFIXES for folder in LIST_FOLDERS)
    return next((path for path in paths if path.is_file()), None)


def read_value_list(source: Path, name: str) -> Iterator[tuple[str, str, str]]:
    """Yield (file, value, location) from an optional list with one value per image."""
    path = find_list_file(source, name)
    if path is None:
        return
    rows = read_text_rows(path) if path.suffix == ".txt" else read_table_rows(path)
    for location, cells in rows:
        if len(cells) != 2:
            raise UserError(
                f"{location}: {len(cells)} words, but a file name and a value are required; correct this line"
            )
        yield cells[0], cells[1], location


def read_text_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (location, words) of every line."""
    yield from ((location, line.split()) for location, line in read_lines(path))


def read_table_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (location, cells) of every row of a table with a header."""
    yield from ((row.location, [cell.strip() for cell in row.cells.values()]) for row in TextTable(path))


def read_attributes(path: Path) -> Iterable[tuple[str, dict[str, int | None], str]]:
    """Yield (file, attributes, location) for every image."""
    names, rows = read_attribute_table(path) if path.suffix == ".csv" else read_attribute_list(path)
    for location, (name, *values) in rows:
        if len(values) != len(names):
            raise UserError(
                f"{location}: {len(values)} values, but the list has {len(names)} attributes; correct this line"
            )
        attributes = {key: parse_attribute(value, location, key) for key, value in zip(names, values, strict=True)}
        yield name, attributes, location


def read_attribute_table(path: Path) -> tuple[list[str], Iterator[tuple[str, list[str]]]]:
    """Return the names of the attributes and the rows of a CSV file, whose first column contains the file names."""
    return list(TextTable(path).original_names.values())[1:], read_table_rows(path)


def read_attribute_list(path: Path) -> tuple[list[str], Iterator[tuple[str, list[str]]]]:
    """Return the names of the attributes and the rows of a text file."""
    lines = read_text_rows(path)
    location, first_words = next(lines, (str(path), [""]))
    if len(first_words) != 1 or not first_words[0].isdecimal():
        raise UserError(f"{location}: the first line must contain the number of images; add it")
    names = next(lines, ("", []))[1]
    if not names:
        raise UserError(f"{path}: the second line must contain the attribute names; add them")
    return names, check_row_count(path, lines, int(first_words[0]))


def check_row_count(
    path: Path, rows: Iterator[tuple[str, list[str]]], num_declared: int
) -> Iterator[tuple[str, list[str]]]:
    """Yield the rows. Raises UserError at the end if their number differs from the declared one."""
    count = 0
    for row in rows:
        yield row
        count += 1
    if count != num_declared:
        raise UserError(
            f"{path}: {count} images, but the first line declares {num_declared}; "
            "copy the file again if it is truncated"
        )
