"""Reader of an image folder with a table: a column of file names and optional label columns."""

from collections.abc import Callable, Sequence
from pathlib import Path

from featgan.data.readers.affectnet_lists import BOUNDING_BOX_COLUMNS
from featgan.data.readers.parsing import (
    EXPRESSION_CODES,
    UNUSABLE_EXPRESSIONS,
    is_numeric_code,
    natural_sort_key,
    normalize_word,
    parse_attribute,
    parse_bounding_box,
    parse_class,
    parse_expression,
    parse_name_list,
    parse_split,
    parse_valence_arousal,
    resolve_path_below,
)
from featgan.data.readers.records import EXPRESSIONS, DatasetListing, RecordCollector
from featgan.data.readers.text_tables import TableRow, TextTable
from featgan.errors import UserError

COLUMN_NAMES = {
    "file": ("filename", "file", "path", "image", "filepath", "file_path", "image_path", "img", "image_id", "name"),
    "expression": ("expression", "emotion", "label", "class", "category"),
    "valence": ("valence", "val"),
    "arousal": ("arousal", "aro"),
    "split": ("split", "subset", "partition", "usage"),
    "identity": ("identity", "person", "subject", "person_id", "subject_id", "celebrity"),
}
"""Default column names by role; the first one that exists is used."""

BINARY_VALUES = ({"0", "1"}, {"-1", "1"})
"""Sets of values that make a column an attribute."""


class CsvColumns:
    """The column of each role, given by an option or found by its default names."""

    def __init__(self, table: TextTable, options: dict[str, str], attribute_columns: Sequence[str]) -> None:
        self.name_by_role: dict[str, str] = {}
        for role, usual_names in COLUMN_NAMES.items():
            table.require_columns(*parse_name_list(options[role]))
            name = options[role].strip().lower() or next((name for name in usual_names if name in table.columns), "")
            self.name_by_role[role] = name
        if not self.name_by_role["file"]:
            raise UserError(
                f"{table.path}, line 1: no column of file names among {', '.join(table.original_names.values())}; "
                "name it with --layout-option file_column=NAME"
            )
        table.require_columns(*attribute_columns)
        self.original_names = table.original_names
        self.has_bounding_box = all(name in table.columns for name in BOUNDING_BOX_COLUMNS)
        remaining_columns = [
            name for name in table.columns if name not in (*self.name_by_role.values(), *BOUNDING_BOX_COLUMNS)
        ]
        self.attributes = [name.lower() for name in attribute_columns]
        self.attribute_candidates = [] if attribute_columns else remaining_columns

    def get_cell(self, row: TableRow, role: str) -> str:
        """Return the cell of a row, or an empty string if the role has no column."""
        name = self.name_by_role[role]
        return row[name].strip() if name else ""

    def get_attribute(self, row: TableRow, column: str) -> int:
        """Return the value of an attribute column, 0 or 1."""
        return parse_attribute(row[column], row.location, self.original_names[column])


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

    `csv` is the file name of the table; the default is labels.csv or the only table in the folder. Expressions are
    names or AffectNet class codes; `classes` contains the class names by code if they differ. `attribute_columns` names
    the attributes; by default, these are all columns that contain only 0 and 1, or only -1 and 1.
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
    expressions = scan_columns(table, columns)
    class_parser, names = choose_class_parser(expressions, parse_name_list(classes))
    folder = resolve_path_below(source, images, "--layout-option images") if images else source
    collector = RecordCollector(source)
    for row in table:
        add_table_row(collector, row, columns, folder, class_parser)
    return collector.build_listing(names)


def find_csv(source: Path, name: str) -> Path:
    """Return the table called `name`, or labels.csv or the only table if the name is empty.

    Raises UserError if there is no such table.
    """
    if name:
        return resolve_path_below(source, name, "--layout-option csv")
    paths = sorted(path for path in source.iterdir() if path.suffix.lower() in (".csv", ".tsv"))
    default_path = source / "labels.csv"
    if default_path in paths or len(paths) == 1:
        return default_path if default_path in paths else paths[0]
    listed_names = ", ".join(path.name for path in paths) or "none"
    raise UserError(
        f"{source}: no labels.csv, and not exactly one table ({listed_names}); name it with --layout-option csv=FILE"
    )


def scan_columns(table: TextTable, columns: CsvColumns) -> set[str]:
    """Determine the attribute columns in a first pass over the table, and return the distinct expressions."""
    expressions: set[str] = set()
    values_by_column: dict[str, set[str]] = {name: set() for name in columns.attribute_candidates}
    for row in table:
        expressions.add(columns.get_cell(row, "expression"))
        for name, values in list(values_by_column.items()):
            values.add(row[name].strip())
            if not any(values <= binary for binary in BINARY_VALUES):
                del values_by_column[name]
    columns.attributes += values_by_column
    return expressions - {""}


def choose_class_parser(
    expressions: set[str], classes: Sequence[str]
) -> tuple[Callable[[str, str], int], tuple[str, ...]]:
    """Return the parser (text, location) => class code, and the class names by code."""
    if classes:
        return lambda text, location: parse_class(text, location, classes), tuple(classes)
    has_known_names = any(
        normalize_word(expression) in EXPRESSION_CODES or is_numeric_code(expression) for expression in expressions
    )
    if has_known_names or not expressions:
        return parse_expression, EXPRESSIONS if expressions else ()
    names = tuple(sorted(expressions, key=natural_sort_key))
    return lambda text, location: parse_class(text, location, names), names


def add_table_row(
    collector: RecordCollector,
    row: TableRow,
    columns: CsvColumns,
    folder: Path,
    class_parser: Callable[[str, str], int],
) -> None:
    """Add the image of one row, or skip it if its expression is an unusable AffectNet class."""
    expression_text = columns.get_cell(row, "expression")
    expression = class_parser(expression_text, row.location) if expression_text else None
    if expression in UNUSABLE_EXPRESSIONS and class_parser is parse_expression:
        collector.count_skipped(UNUSABLE_EXPRESSIONS[expression])
        return
    attributes = {columns.original_names[name]: columns.get_attribute(row, name) for name in columns.attributes}
    labels = {
        "expression": expression,
        **parse_valence_arousal(columns.get_cell(row, "valence"), columns.get_cell(row, "arousal"), row.location),
        "attributes": attributes or None,
        "bounding_box": parse_bounding_box([row[name] for name in BOUNDING_BOX_COLUMNS], row.location)
        if columns.has_bounding_box
        else None,
        "identity": columns.get_cell(row, "identity") or None,
    }
    path = resolve_path_below(folder, columns.get_cell(row, "file"), row.location)
    collector.add_image(path, parse_split(columns.get_cell(row, "split"), row.location), labels)
