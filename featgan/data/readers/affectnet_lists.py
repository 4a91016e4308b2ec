"""Readers of AffectNet with lists of labels: text files of the original implementation, CSV files of release 1."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from featgan.data.readers.image_paths import ImagePaths, find_image_paths
from featgan.data.readers.parsing import (
    UNUSABLE_EXPRESSIONS,
    parse_bounding_box,
    parse_class,
    parse_expression,
    parse_name_list,
    parse_valence_arousal,
    resolve_path_below,
)
from featgan.data.readers.records import EXPRESSIONS, DatasetListing, RecordCollector
from featgan.data.readers.text_tables import TableRow, TextTable, read_lines
from featgan.errors import UserError

EMOTIW_CLASSES = ("anger", "disgust", "fear", "happy", "neutral", "sad", "surprise")
"""The 7 expressions of EmotiW by class code; the lists contain codes only."""

LIST_SPLITS = {"train": ("train", "train"), "test": ("validation", "validation")}
"""Split name in the lists => split name in featgan, and the folder of its images."""

LIST_NAMES = ("emotiw", "va", "64d_cls", "64d_reg")

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
BOUNDING_BOX_COLUMNS = ("face_x", "face_y", "face_width", "face_height")
CSV_IMAGE_FOLDERS = (
    ".",
    "Manually_Annotated_Images",
    "Manually_Annotated",
    "Manually_Annotated/Manually_Annotated_Images",
    "images",
)


# -- the lists of the original implementation (2020) -------------------------------------------------------------------


def read_affectnet_lists(
    source: Path, labels: str | Sequence[str] = "", classes: str | Sequence[str] = ""
) -> DatasetListing:
    """Read `_affectnet_{train,test}_{emotiw,va}.txt` and `64d_{cls,reg}/{train,test}/{images,labels}.txt`.

    `labels` names the lists to read; the default is every list that exists. The labels of an image are merged over the
    lists, and the first list has priority. `classes` contains the class names by code; the default is EmotiW's order.
    """
    names = parse_name_list(classes) or EMOTIW_CLASSES
    list_names = parse_name_list(labels)
    unknown = [name for name in list_names if name not in LIST_NAMES]
    if unknown:
        raise UserError(f"--layout-option labels: no list {unknown[0]!r}; choose from {', '.join(LIST_NAMES)}")
    collector = RecordCollector(source)
    for list_split, (split, folder) in LIST_SPLITS.items():
        labels_by_path: dict[Path, dict[str, Any]] = {}
        for name in list_names or LIST_NAMES:
            for image, location, cells in read_label_list(source, name, list_split):
                path = resolve_path_below(source / folder, image, location)
                labels_by_path[path] = parse_list_labels(cells, location, names) | labels_by_path.get(path, {})
        for path, image_labels in labels_by_path.items():
            collector.add_image(path, split, image_labels)
    if not collector.records and not collector.missing_files:
        example = list_label_files(source, (list_names or LIST_NAMES)[0], "train")[0].relative_to(source)
        raise UserError(
            f"{source}: none of the lists {', '.join(list_names or LIST_NAMES)} exists, such as {example}; "
            "give the folder that contains them"
        )
    return collector.build_listing(names)


def list_label_files(source: Path, name: str, list_split: str) -> list[Path]:
    """Return the files of one list: one file of names and labels, or one file for each."""
    if name.startswith("64d"):
        return [source / name / list_split / file for file in ("images.txt", "labels.txt")]
    return [source / f"_affectnet_{list_split}_{name}.txt"]


def read_label_list(source: Path, name: str, list_split: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (image, location, labels) for every line of one list; nothing if the list does not exist."""
    files = list_label_files(source, name, list_split)
    if not any(file.exists() for file in files):
        return
    num_labels = 1 if name in ("emotiw", "64d_cls") else 2
    if len(files) == 1:
        for location, line in read_lines(files[0]):
            image, *cells = line.strip().rsplit(maxsplit=num_labels)
            yield image, location, check_label_count(cells, num_labels, location)
        return
    images, values = (list(read_lines(file)) for file in files)
    if len(images) != len(values):
        raise UserError(
            f"{files[1]}: {len(values)} lines, but {files[0].name} has {len(images)}; "
            "both files need one line per image"
        )
    for (_, image), (location, line) in zip(images, values, strict=True):
        yield image.strip(), location, check_label_count(line.split(), num_labels, location)


def check_label_count(cells: list[str], num_labels: int, location: str) -> list[str]:
    """Return the cells. Raises UserError if their number is not `num_labels`."""
    if len(cells) != num_labels:
        raise UserError(f"{location}: {len(cells)} labels, but {num_labels} are required; correct this line")
    return cells


def parse_list_labels(cells: list[str], location: str, classes: Sequence[str]) -> dict[str, Any]:
    """Parse one cell as a class, or two cells as valence and arousal."""
    if len(cells) == 1:
        return {"expression": parse_class(cells[0], location, classes)}
    return parse_valence_arousal(cells[0], cells[1], location)


# -- release 1 ---------------------------------------------------------------------------------------------------------


def read_affectnet_csv(source: Path, images: str = "") -> DatasetListing:
    """Read `training.csv` and `validation.csv`, which contain bounding boxes; one may be missing or have no header.

    `images` is the folder below `source` that the paths are relative to; by default, the usual folders are tried.
    """
    tables = {
        split: TextTable(path, CSV_COLUMNS) for split, name in CSV_FILES.items() if (path := source / name).exists()
    }
    if not tables:
        raise UserError(
            f"{source}: neither {' nor '.join(CSV_FILES.values())} exists; give the folder that contains them"
        )
    for table in tables.values():
        table.require_columns(*(name for name in CSV_COLUMNS if name != "facial_landmarks"))
    collector = RecordCollector(source)
    folders = [source / name for name in CSV_IMAGE_FOLDERS]
    if images:
        folders = [resolve_path_below(source, images, "--layout-option images")]
    names = (row[CSV_COLUMNS[0].lower()] for table in tables.values() for row in table)
    paths = find_image_paths(collector, folders, names)
    for split, table in tables.items():
        for row in table:
            add_csv_row(collector, row, paths, split)
    return collector.build_listing(EXPRESSIONS)


def add_csv_row(collector: RecordCollector, row: TableRow, paths: ImagePaths, split: str) -> None:
    """Add the image of one row, or skip it if its expression is an unusable class."""
    expression = parse_expression(row["expression"], row.location)
    if expression in UNUSABLE_EXPRESSIONS:
        collector.count_skipped(UNUSABLE_EXPRESSIONS[expression])
        return
    labels = {
        "expression": expression,
        "bounding_box": parse_bounding_box([row[name] for name in BOUNDING_BOX_COLUMNS], row.location),
        **parse_valence_arousal(row["valence"], row["arousal"], row.location),
    }
    collector.add_image(paths.resolve(row["subdirectory_filepath"], row.location), split, labels)
