"""Reader of an image folder with a table: a column of file names and optional label columns."""

import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from featgan.data.readers.affectnet_lists import BOUNDING_BOX_COLUMNS
from featgan.data.readers.class_codes import ClassCodes, assign_class_codes, is_missing_label
from featgan.data.readers.image_paths import MAX_SUBFOLDERS, ImagePaths, find_image_paths, split_listed_path
from featgan.data.readers.parsing import (
    attribute_word,
    parse_attribute,
    parse_bounding_box,
    parse_name_list,
    parse_pixels,
    parse_split,
    parse_valence_arousal,
    resolve_path_below,
    split_from_folder_name,
)
from featgan.data.readers.records import DatasetListing, RecordCollector
from featgan.data.readers.text_tables import TableRow, TextTable
from featgan.errors import UserError
from featgan.system.image_files import is_system_file
from featgan.system.plain_text import format_one_line

logger = logging.getLogger(__name__)

TABLE_SUFFIXES = ((".csv", ".tsv"), (".txt",))
"""Suffixes of tables; a text file is used only if the source has no other table."""
USUAL_IMAGE_FOLDERS = ("images", "imgs", "img", "data", "train", "Image/aligned", "Image/original")
"""Folders in which the listed images are looked for, if they are not in the source."""

MAX_LISTED_TABLES = 10
"""Number of tables in the message that asks for one of them."""

COLUMN_NAMES = {
    "file": (
        *("filename", "file", "path", "image", "filepath", "image_path", "img", "image_id", "image_name", "img_path"),
        *("image_file", "img_name", "img_file", "file_location", "photo", "pth", "image_url", "url", "name", "id"),
    ),
    "expression": (
        *("expression", "emotion", "label", "labels", "class", "class_name", "category", "target", "emotion_label"),
        *("label_name", "class_label", "class_id", "facial_expression"),
    ),
    "valence": ("valence", "val"),
    "arousal": ("arousal", "aro"),
    "split": ("split", "subset", "partition", "usage", "set", "phase"),
    "identity": ("identity", "person", "subject", "person_id", "subject_id", "celebrity"),
}
"""Default column names by role; the first one that exists is used. Only their letters and digits are compared."""

PIXEL_COLUMN = "pixels"
"""Column that contains the pixels of the images, in a table without file names, such as fer2013.csv."""

ROW_NAMES = re.compile(r"column \d+|unnamed: .*|row name|index")
"""Columns without a name, which contain the numbers of the rows in the tables of pandas and R."""

LABEL_ROLES = ("expression", "valence", "arousal")

BINARY_VALUES = ({"0", "1"}, {"-1", "1"}, {"true", "false"}, {"yes", "no"})
"""Sets of values that make a column an attribute."""
BINARY_LETTERS = ({"y", "n"}, {"t", "f"})
"""Sets of values that make a column an attribute if both occur: a column of `f` alone can mean female."""


class CsvColumns:
    """The column of each role, given by an option or found by its default names."""

    def __init__(self, table: TextTable, options: dict[str, str], attribute_columns: Sequence[str]) -> None:
        self.name_by_role: dict[str, str] = {}
        for role, usual_names in COLUMN_NAMES.items():
            table.require_columns(*parse_name_list(options[role]))
            name = options[role].strip().lower() or table.find_column(usual_names)
            self.name_by_role[role] = name
        self.has_pixels = not self.name_by_role["file"] and PIXEL_COLUMN in table.columns
        if not self.name_by_role["file"] and not self.has_pixels:
            raise UserError(
                f"{table.path}, line 1: no column of file names among {', '.join(table.original_names.values())}; "
                "name it with --layout-option file_column=NAME"
            )
        table.require_columns(*attribute_columns)
        self.original_names = table.original_names
        self.has_split_names = not self.name_by_role["split"] and has_split_names(
            self.get_cell(row, "file") for row in table
        )
        self.has_bounding_box = all(name in table.columns for name in BOUNDING_BOX_COLUMNS)
        used_columns = {*self.name_by_role.values(), *BOUNDING_BOX_COLUMNS}
        remaining_columns = [name for name in table.columns if not (name in used_columns or ROW_NAMES.fullmatch(name))]
        self.attributes = [name.lower() for name in attribute_columns]
        self.attribute_candidates = [] if attribute_columns else remaining_columns

    def report_missing_labels(self, table: TextTable) -> None:
        """Log one line if no column contains labels, because a column may only have another name."""
        if not any(self.name_by_role[role] for role in LABEL_ROLES) and not self.attributes:
            logger.info(
                f"{table.path}: no labels among the columns {', '.join(self.original_names.values())}; "
                "name the column of the classes with --layout-option expression_column=NAME"
            )

    def get_cell(self, row: TableRow, role: str) -> str:
        """Return the cell of a row, or an empty string if the role has no column."""
        name = self.name_by_role[role]
        return row[name].strip() if name else ""

    def find_split_in_name(self, row: TableRow) -> str:
        """Return the split that the file name begins with, such as `train_00001.jpg` in RAF-DB, or ""."""
        return split_from_file_name(self.get_cell(row, "file")) if self.has_split_names else ""

    def get_attribute(self, row: TableRow, column: str) -> int | None:
        """Return the value of an attribute column: 0, 1, or None if it is unknown."""
        return parse_attribute(row[column], row.location, self.original_names[column])


def split_from_file_name(name: str) -> str:
    """Return the split that stands at the start of a file name or is one of its folders, or ""."""
    *folders, file_name = split_listed_path(name) or [""]
    word = re.split(r"[^A-Za-z]", file_name, maxsplit=1)[0]
    return next(filter(None, map(split_from_folder_name, (*folders, word))), "")


def has_split_names(names: Iterable[str]) -> bool:
    """Return whether every file name contains its split, and some of them are training images."""
    splits: set[str] = set()
    for name in names:
        splits.add(split_from_file_name(name))
        if "" in splits:
            return False
    return "train" in splits and len(splits) > 1


def read_csv(
    source: Path,
    csv: str = "",
    images: str = "",
    classes: str | Sequence[str] = "",
    attribute_columns: str | Sequence[str] = "",
    file_column: str = "",
    expression_column: str = "",
    valence_column: str = "",
    arousal_column: str = "",
    split_column: str = "",
    identity_column: str = "",
) -> DatasetListing:
    """Read a table with a column of file names (below `source`/`images`) and optional label columns.

    `csv` is the file name of the table; the default is labels.csv or the only table in the folder. `classes` defines
    the names of the classes, see `assign_class_codes`. `attribute_columns` names the attributes; by default, these are
    all columns with two values such as 0 and 1, or true and false. `images` is the folder of the images; by default,
    the images are looked for in the source and its subfolders.
    """
    table = TextTable(find_csv(source, csv))
    options = {
        "file": file_column,
        "expression": expression_column,
        "valence": valence_column,
        "arousal": arousal_column,
        "split": split_column,
        "identity": identity_column,
    }
    columns = CsvColumns(table, options, parse_name_list(attribute_columns))
    codes = assign_class_codes(scan_columns(table, columns), classes, source)
    columns.report_missing_labels(table)
    collector = RecordCollector(source)
    paths = locate_images(collector, table, columns, images)
    for row in table:
        add_table_row(collector, row, columns, paths, codes)
    return collector.build_listing(codes.names)


def locate_images(collector: RecordCollector, table: TextTable, columns: CsvColumns, images: str) -> ImagePaths:
    """Return where the images of the table are."""
    source = collector.source
    if columns.has_pixels:
        return ImagePaths(source)
    if images:
        folders = [resolve_path_below(source, images, "--layout-option images")]
    else:
        usual_folders = [source / name for name in USUAL_IMAGE_FOLDERS]
        subfolders = sorted(path for path in source.iterdir() if path.is_dir() and not is_system_file(path.name))
        folders = [source, *dict.fromkeys(usual_folders + subfolders[:MAX_SUBFOLDERS])]
    return find_image_paths(collector, folders, (columns.get_cell(row, "file") for row in table))


def find_csv(source: Path, name: str) -> Path:
    """Return the table called `name`, or labels.csv or the only table if the name is empty.

    Raises UserError if there is no such table.
    """
    if name:
        return resolve_path_below(source, name, "--layout-option csv")
    paths = list_tables(source)
    if not paths:
        subfolders = sorted(path for path in source.iterdir() if path.is_dir() and not is_system_file(path.name))
        paths = [path for folder in subfolders[:MAX_SUBFOLDERS] for path in list_tables(folder)]
    default_path = source / "labels.csv"
    if default_path in paths or len(paths) == 1:
        return default_path if default_path in paths else paths[0]
    names = [format_one_line(path.relative_to(source).as_posix()) for path in paths]
    listed_names = ", ".join(names[:MAX_LISTED_TABLES]) + (", ..." if len(names) > MAX_LISTED_TABLES else "") or "none"
    raise UserError(
        f"{source}: no labels.csv, and not exactly one table ({listed_names}); name it with --layout-option csv=FILE"
    )


def list_tables(folder: Path) -> list[Path]:
    """Return the tables in a folder: its CSV and TSV files, or its text files if it has none."""
    for suffixes in TABLE_SUFFIXES:
        candidates = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes)
        if paths := [path for path in candidates if path.is_file() and not is_system_file(path.name)]:
            return paths
    return []


def scan_columns(table: TextTable, columns: CsvColumns) -> set[str]:
    """Determine the attribute columns in a first pass over the table, and return the distinct expressions."""
    expressions: set[str] = set()
    values_by_column: dict[str, set[str]] = {name: set() for name in columns.attribute_candidates}
    for row in table:
        expressions.add(columns.get_cell(row, "expression"))
        for name, values in list(values_by_column.items()):
            values.add(attribute_word(row[name]))
            if not any(values - {""} <= binary for binary in (*BINARY_VALUES, *BINARY_LETTERS)):
                del values_by_column[name]
    columns.attributes += [name for name, values in values_by_column.items() if is_attribute(values - {""})]
    return {text for text in expressions if not is_missing_label(text)}


def is_attribute(values: set[str]) -> bool:
    """Return whether the known values of a column are those of an attribute."""
    return bool(values) and (any(values <= binary for binary in BINARY_VALUES) or values in BINARY_LETTERS)


def add_table_row(
    collector: RecordCollector, row: TableRow, columns: CsvColumns, paths: ImagePaths, codes: ClassCodes
) -> None:
    """Add the image of one row, or skip it if its expression is an unusable AffectNet class."""
    expression_text = columns.get_cell(row, "expression")
    if reason := codes.find_skip_reason(expression_text):
        collector.count_skipped(reason)
        return
    attributes = {columns.original_names[name]: columns.get_attribute(row, name) for name in columns.attributes}
    labels = {
        "expression": codes.find_code(expression_text, row.location),
        **parse_valence_arousal(columns.get_cell(row, "valence"), columns.get_cell(row, "arousal"), row.location),
        "attributes": attributes or None,
        "bounding_box": parse_bounding_box([row[name] for name in BOUNDING_BOX_COLUMNS], row.location)
        if columns.has_bounding_box
        else None,
        "identity": columns.get_cell(row, "identity") or None,
    }
    split = parse_split(columns.get_cell(row, "split"), row.location) or columns.find_split_in_name(row)
    if columns.has_pixels:
        table, _, line = row.location.rpartition(", ")
        path = Path(table) / line
        collector.add_content(path, parse_pixels(row[PIXEL_COLUMN], row.location), split, labels)
    else:
        collector.add_image(paths.resolve(columns.get_cell(row, "file"), row.location), split, labels)
