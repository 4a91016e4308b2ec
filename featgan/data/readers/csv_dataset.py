"""Reader of any folder of images with a table: a column of files, and any of the labels."""

from collections.abc import Callable, Sequence
from pathlib import Path

from featgan.data.readers.affectnet_lists import BOX_COLUMNS
from featgan.data.readers.parsing import (
    CODES,
    UNUSABLE,
    affect,
    is_code,
    natural_order,
    parse_attribute,
    parse_box,
    parse_class,
    parse_expression,
    parse_split,
    path_below,
    split_list,
    squeeze,
)
from featgan.data.readers.records import EXPRESSIONS, Collector, Layout
from featgan.data.readers.text_tables import Row, Table
from featgan.errors import UserError

COLUMN_NAMES = {
    "file": ("filename", "file", "path", "image", "filepath", "file_path", "image_path", "img", "image_id", "name"),
    "expression": ("expression", "emotion", "label", "class", "category"),
    "valence": ("valence", "val"),
    "arousal": ("arousal", "aro"),
    "split": ("split", "subset", "partition", "usage"),
    "identity": ("identity", "person", "subject", "person_id", "subject_id", "celebrity"),
}
"""Column names that are known without an option, the first that is there being taken."""

BINARY = ({"0", "1"}, {"-1", "1"})
"""The values of a column that is taken for an attribute."""


class CsvColumns:
    """Which column holds what: by option, else by its usual names."""

    def __init__(self, table: Table, options: dict[str, str], attribute_columns: Sequence[str]) -> None:
        self.by_role: dict[str, str] = {}
        for role, usual in COLUMN_NAMES.items():
            table.require(*split_list(options[role]))
            name = options[role].strip().lower() or next((name for name in usual if name in table.columns), "")
            self.by_role[role] = name
        if not self.by_role["file"]:
            raise UserError(
                f"{table.path}, line 1: no column of file names among {', '.join(table.spelled.values())}; "
                f"name it with the option file_column"
            )
        table.require(*attribute_columns)
        self.spelled = table.spelled
        self.has_box = all(name in table.columns for name in BOX_COLUMNS)
        rest = [name for name in table.columns if name not in (*self.by_role.values(), *BOX_COLUMNS)]
        self.attributes = [name.lower() for name in attribute_columns]
        self.candidates = [] if attribute_columns else rest

    def cell(self, row: Row, role: str) -> str:
        """A row's cell, empty where there is no such column."""
        name = self.by_role[role]
        return row[name].strip() if name else ""

    def attribute(self, row: Row, column: str) -> int:
        """0 or 1."""
        return parse_attribute(row[column], row.place, self.spelled[column])


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
) -> Layout:
    """A table with a column of files (below `source`/`images`) and any of the labels.

    `csv` is its file name (default labels.csv, or the only one). Expressions are names or AffectNet's codes; `classes`
    gives the names by code where they are others. Attributes are the columns asked for, by default all that hold
    nothing but 0 and 1, or -1 and 1.
    """
    table = Table(find_csv(source, csv))
    options = {
        "file": file_column,
        "expression": expression_column,
        "valence": valence_column,
        "arousal": arousal_column,
        "split": split_column,
        "identity": identity_column,
    }
    columns = CsvColumns(table, options, split_list(attribute_columns))
    words = survey(table, columns)
    parse, names = choose_classes(words, split_list(classes))
    folder = path_below(source, images, "option images") if images else source
    collector = Collector(source)
    for row in table:
        add_table_row(collector, row, columns, folder, parse)
    return collector.finish(names)


def find_csv(source: Path, name: str) -> Path:
    """The table asked for, labels.csv, or the only one."""
    if name:
        return path_below(source, name, "option csv")
    found = sorted(path for path in source.iterdir() if path.suffix.lower() in (".csv", ".tsv"))
    usual = source / "labels.csv"
    if usual in found or len(found) == 1:
        return usual if usual in found else found[0]
    there = ", ".join(path.name for path in found) or "none"
    raise UserError(f"{source}: no labels.csv and not exactly one table ({there}); name it with the option csv")


def survey(table: Table, columns: CsvColumns) -> set[str]:
    """A first pass: settles which columns are attributes, and returns the distinct expressions."""
    words: set[str] = set()
    seen: dict[str, set[str]] = {name: set() for name in columns.candidates}
    for row in table:
        words.add(columns.cell(row, "expression"))
        for name, values in list(seen.items()):
            values.add(row[name].strip())
            if not any(values <= binary for binary in BINARY):
                del seen[name]
    columns.attributes += seen
    return words - {""}


def choose_classes(words: set[str], classes: Sequence[str]) -> tuple[Callable[[str, str], int], tuple[str, ...]]:
    """How to read an expression (from text and place), and the classes by code."""
    if classes:
        return lambda text, place: parse_class(text, place, classes), tuple(classes)
    known = any(squeeze(word) in CODES or is_code(word) for word in words)
    if known or not words:
        return parse_expression, EXPRESSIONS if words else ()
    names = tuple(sorted(words, key=natural_order))
    return lambda text, place: parse_class(text, place, names), names


def add_table_row(
    collector: Collector, row: Row, columns: CsvColumns, folder: Path, parse: Callable[[str, str], int]
) -> None:
    """Take one row, unless its expression says that there is none."""
    word = columns.cell(row, "expression")
    expression = parse(word, row.place) if word else None
    if expression in UNUSABLE and parse is parse_expression:
        collector.skip(UNUSABLE[expression])
        return
    attributes = {columns.spelled[name]: columns.attribute(row, name) for name in columns.attributes}
    labels = {
        "expression": expression,
        **affect(columns.cell(row, "valence"), columns.cell(row, "arousal"), row.place),
        "attributes": attributes or None,
        "face_box": parse_box([row[name] for name in BOX_COLUMNS], row.place) if columns.has_box else None,
        "identity": columns.cell(row, "identity") or None,
    }
    path = path_below(folder, columns.cell(row, "file"), row.place)
    collector.add(path, parse_split(columns.cell(row, "split"), row.place), labels)
