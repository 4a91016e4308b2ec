"""Readers of AffectNet where lists hold the labels: the ancestor's text files, the first release's CSV files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from featgan.data.readers.parsing import (
    UNUSABLE,
    affect,
    parse_box,
    parse_class,
    parse_expression,
    path_below,
    split_list,
)
from featgan.data.readers.records import EXPRESSIONS, Collector, Layout
from featgan.data.readers.text_tables import Row, Table, read_lines
from featgan.errors import UserError

EMOTIW_CLASSES = ("anger", "disgust", "fear", "happy", "neutral", "sad", "surprise")
"""EmotiW's 7 expressions by code; the lists hold codes only."""

LIST_SPLITS = {"train": ("train", "train"), "test": ("validation", "validation")}
"""What the lists call a split => its name here and the folder of its images."""
LISTS = ("emotiw", "va", "64d_cls", "64d_reg")

CSV_FILES = {"train": "training.csv", "validation": "validation.csv"}
CSV_COLUMNS = (
    "subDirectory_filePath",
    "face_x",
    "face_y",
    "face_width",
    "face_height",
    "facial_landmarks",
    "expression",
    "valence",
    "arousal",
)
BOX_COLUMNS = ("face_x", "face_y", "face_width", "face_height")
CSV_IMAGE_FOLDERS = (
    ".",
    "Manually_Annotated_Images",
    "Manually_Annotated",
    "Manually_Annotated/Manually_Annotated_Images",
    "images",
)
MOST_PROBED = 50
"""Rows looked up to find which folder holds the images."""


# -- the ancestor's lists ---------------------------------------------------------------------------------------------


def read_affectnet_lists(source: Path, labels: str | Sequence[str] = "", classes: str | Sequence[str] = "") -> Layout:
    """`_affectnet_{train,test}_{emotiw,va}.txt` and `64d_{cls,reg}/{train,test}/{images,labels}.txt`.

    `labels` names the lists to read (default: all that are there); an image's labels are joined over the lists, the
    first list that has one winning. `classes` names the expressions by code (default: EmotiW's order).
    """
    names = split_list(classes) or EMOTIW_CLASSES
    asked = split_list(labels)
    unknown = [name for name in asked if name not in LISTS]
    if unknown:
        raise UserError(f"no lists called {unknown[0]!r}; known are {', '.join(LISTS)}")
    collector = Collector(source)
    for list_split, (split, folder) in LIST_SPLITS.items():
        found: dict[Path, dict[str, Any]] = {}
        for name in asked or LISTS:
            for image, place, cells in read_list(source, name, list_split):
                path = path_below(source / folder, image, place)
                found[path] = list_labels(cells, place, names) | found.get(path, {})
        for path, joined in found.items():
            collector.add(path, split, joined)
    if not collector.records and not collector.missing_files:
        example = list_files(source, (asked or LISTS)[0], "train")[0].relative_to(source)
        raise UserError(f"{source}: none of the lists {', '.join(asked or LISTS)} is there, such as {example}")
    return collector.finish(names)


def list_files(source: Path, name: str, list_split: str) -> list[Path]:
    """One file of names and labels, or a file of each."""
    if name.startswith("64d"):
        return [source / name / list_split / file for file in ("images.txt", "labels.txt")]
    return [source / f"_affectnet_{list_split}_{name}.txt"]


def read_list(source: Path, name: str, list_split: str) -> Iterator[tuple[str, str, list[str]]]:
    """(image, place, labels) of every line of one list; nothing where the list is not there."""
    files = list_files(source, name, list_split)
    if not any(file.exists() for file in files):
        return
    num_labels = 1 if name in ("emotiw", "64d_cls") else 2
    if len(files) == 1:
        for place, line in read_lines(files[0]):
            image, *cells = line.strip().rsplit(maxsplit=num_labels)
            yield image, place, check_length(cells, num_labels, place)
        return
    images, values = (list(read_lines(file)) for file in files)
    if len(images) != len(values):
        raise UserError(f"{files[1]}: {len(values)} lines, but {files[0].name} has {len(images)}")
    for (_, image), (place, line) in zip(images, values, strict=True):
        yield image.strip(), place, check_length(line.split(), num_labels, place)


def check_length(cells: list[str], num_labels: int, place: str) -> list[str]:
    if len(cells) != num_labels:
        raise UserError(f"{place}: {len(cells)} labels where {num_labels} should be")
    return cells


def list_labels(cells: list[str], place: str, classes: Sequence[str]) -> dict[str, Any]:
    """One cell is a class, two are valence and arousal."""
    if len(cells) == 1:
        return {"expression": parse_class(cells[0], place, classes)}
    return affect(cells[0], cells[1], place)


# -- the first release ------------------------------------------------------------------------------------------------


def read_affectnet_csv(source: Path, images: str = "") -> Layout:
    """`training.csv` and `validation.csv` (either may be absent, and lack a header), with face boxes.

    `images` is the folder below `source` that the paths start from (default: it is looked for).
    """
    tables = {split: Table(path, CSV_COLUMNS) for split, name in CSV_FILES.items() if (path := source / name).exists()}
    if not tables:
        raise UserError(f"{source}: neither {' nor '.join(CSV_FILES.values())} is there")
    collector = Collector(source)
    folder = find_image_folder(collector, list(tables.values()))
    if images:
        folder = path_below(source, images, "option images")
    for split, table in tables.items():
        table.require(*(name for name in CSV_COLUMNS if name != "facial_landmarks"))
        for row in table:
            add_csv_row(collector, row, folder, split)
    return collector.finish(EXPRESSIONS)


def find_image_folder(collector: Collector, tables: list[Table]) -> Path:
    """The first usual folder in which one of the first images lies; the source itself if none does."""
    column = CSV_COLUMNS[0]
    for table in tables:
        table.require(column)
        rows = [row for row, _ in zip(table, range(MOST_PROBED), strict=False)]
        for folder in (collector.source / name for name in CSV_IMAGE_FOLDERS):
            if any(collector.listing.find(path_below(folder, row[column.lower()], row.place)) for row in rows):
                return folder
    return collector.source


def add_csv_row(collector: Collector, row: Row, folder: Path, split: str) -> None:
    """Take one row, unless its expression says that there is none."""
    expression = parse_expression(row["expression"], row.place)
    if expression in UNUSABLE:
        collector.skip(UNUSABLE[expression])
        return
    labels = {
        "expression": expression,
        "face_box": parse_box([row[name] for name in BOX_COLUMNS], row.place),
        **affect(row["valence"], row["arousal"], row.place),
    }
    collector.add(path_below(folder, row["subdirectory_filepath"], row.place), split, labels)
