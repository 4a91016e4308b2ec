"""Text tables, read row by row without loading the complete file; each row has its location for error messages."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from featgan.errors import UserError

MAX_LINE_LENGTH = 1 << 20
"""In characters; the longest lines of AffectNet have about 2,000."""


@dataclass(frozen=True)
class TableRow:
    """One row: its cells by lower-case column name, and its location (file and line)."""

    location: str
    cells: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells[column]


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (location, line) for every line that is not blank. Raises UserError if the file is missing or not text."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            line_number = 0
            while line := file.readline(MAX_LINE_LENGTH + 1):
                line_number += 1
                if len(line) > MAX_LINE_LENGTH:
                    raise UserError(
                        f"{path}, line {line_number}: longer than {MAX_LINE_LENGTH:,} characters; give a text file"
                    )
                if line.strip():
                    yield f"{path}, line {line_number}", line.rstrip("\r\n")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; convert it to UTF-8") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; check the file and its permissions") from error


class TextTable:
    """A table of separated values; each iteration reads the file again.

    Without `header`, the first line contains the column names. With `header`, the column names in order, the first
    line may already contain data.
    """

    def __init__(self, path: Path, header: Sequence[str] | None = None) -> None:
        self.path = path
        first_line = next(read_lines(path), None)
        if first_line is None:
            raise UserError(f"{path}: the file is empty; write the column names to the first line")
        # If the columns are known, cells may contain semicolons: AffectNet separates landmarks by semicolons.
        self.delimiter = "," if header else max(",;\t", key=first_line[1].count)
        cells = self.split_cells(*first_line)
        self.has_header = header is None or cells[0].strip().lower() == header[0].lower()
        names = cells if self.has_header or header is None else header
        self.original_names = {name.strip().lower(): name.strip() for name in names}
        """Lower-case column name => name as written in the header."""
        self.columns = tuple(name.strip().lower() for name in names)
        if len(set(self.columns)) < len(self.columns):
            raise UserError(f"{path}, line 1: a column name occurs twice; rename one of the columns")

    def split_cells(self, location: str, line: str) -> list[str]:
        """Return the cells of one line; a quoted cell may contain delimiters but no line breaks."""
        try:
            return next(csv.reader([line], delimiter=self.delimiter, strict=True))
        except csv.Error as error:
            raise UserError(
                f"{location}: not a table with separated values ({error}); check the quotes in this line"
            ) from None

    def __iter__(self) -> Iterator[TableRow]:
        lines = read_lines(self.path)
        if self.has_header:
            next(lines)
        for location, line in lines:
            cells = self.split_cells(location, line)
            if len(cells) != len(self.columns):
                raise UserError(
                    f"{location}: {len(cells)} cells, but the table has {len(self.columns)} columns; correct this line"
                )
            yield TableRow(location, dict(zip(self.columns, cells, strict=True)))

    def require_columns(self, *columns: str) -> None:
        """Raise UserError if a column is missing."""
        for column in columns:
            if column.lower() not in self.columns:
                names = ", ".join(self.original_names.values())
                raise UserError(f"{self.path}, line 1: no column {column}; the columns are {names}; add or rename one")
