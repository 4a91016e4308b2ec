"""Text files of data sets, row by row, each row with its place for error messages; never wholly in memory."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from featgan.errors import UserError

MAX_LINE = 1 << 20
"""Characters; AffectNet's longest lines have about 2,000."""


@dataclass(frozen=True)
class Row:
    """One row: its cells by column (lower case), and where it is (file and line)."""

    place: str
    cells: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells[column]


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """(place, line) of every line that is not blank; UserError when it is missing or no text."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            number = 0
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise UserError(f"{path}, line {number}: longer than {MAX_LINE} characters; is it a text file?")
                if line.strip():
                    yield f"{path}, line {number}", line.rstrip("\r\n")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


class Table:
    """A file of separated values; iterating it reads it anew.

    Without `header`, column names come from the first line. With it (the columns' names in order), the first line
    may be data already.
    """

    def __init__(self, path: Path, header: Sequence[str] | None = None) -> None:
        self.path = path
        first = next(read_lines(path), None)
        if first is None:
            raise UserError(f"{path}: empty")
        # Where the columns are known the cells may hold semicolons: AffectNet joins landmarks by them.
        self.delimiter = "," if header else max(",;\t", key=first[1].count)
        cells = self.split(*first)
        self.has_header = header is None or cells[0].strip().lower() == header[0].lower()
        names = cells if self.has_header or header is None else header
        self.spelled = {name.strip().lower(): name.strip() for name in names}
        """Each column as the header writes it."""
        self.columns = tuple(name.strip().lower() for name in names)
        if len(set(self.columns)) < len(self.columns):
            raise UserError(f"{path}, line 1: a column name occurs twice")

    def split(self, place: str, line: str) -> list[str]:
        """The cells of one line; a quoted cell may hold delimiters but no line ends."""
        try:
            return next(csv.reader([line], delimiter=self.delimiter, strict=True))
        except csv.Error as error:
            raise UserError(f"{place}: not separated values: {error}") from None

    def __iter__(self) -> Iterator[Row]:
        lines = read_lines(self.path)
        if self.has_header:
            next(lines)
        for place, line in lines:
            cells = self.split(place, line)
            if len(cells) != len(self.columns):
                raise UserError(f"{place}: {len(cells)} cells, but there are {len(self.columns)} columns")
            yield Row(place, dict(zip(self.columns, cells, strict=True)))

    def require(self, *columns: str) -> None:
        """UserError naming the first column that is not there."""
        for column in columns:
            if column.lower() not in self.columns:
                raise UserError(
                    f"{self.path}, line 1: no column {column}; there are {', '.join(self.spelled.values())}"
                )
