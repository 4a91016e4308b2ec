"""Text tables, read row by row without loading the complete file; each row has its location for error messages.

Tables may be encoded in UTF-8, UTF-16 or Windows-1252, with any line ends, and separated by commas, semicolons, tabs,
bars or spaces.
"""

import codecs
import csv
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO

from featgan.data.readers.parsing import normalize_word
from featgan.errors import UserError
from featgan.system.files import open_regular_file
from featgan.system.image_files import has_image_suffix
from featgan.system.limits import MAX_TABLE_BYTES, MAX_TABLE_LINES

MAX_LINE_LENGTH = 1 << 20
"""In characters; the longest lines of AffectNet have about 2,000."""

MAX_LISTED_COLUMNS = 50
"""Maximum number of columns that a message lists; CelebA has 41."""

DELIMITERS = ",;\t|"
DECLARED_DELIMITER = re.compile(r'"?sep=([,;|\t])"?\s*', re.IGNORECASE)
"""A first line that tells Excel the delimiter, such as `sep=;`; it is not a part of the table."""

PROBED_BYTES = 1024
"""Number of bytes that are used to recognize the encoding of a file."""


@dataclass(frozen=True)
class TableRow:
    """One row: its cells by lower-case column name, and its location (file and line)."""

    location: str
    cells: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells[column]


def decode_windows_bytes(error: UnicodeError) -> tuple[str, int]:
    """Decode bytes that are not UTF-8 as Windows-1252, which Excel writes by default in Western countries."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    content = error.object[error.start : error.end]
    try:
        return content.decode("cp1252"), error.end
    except UnicodeDecodeError:
        return content.decode("latin-1"), error.end


codecs.register_error("featgan.windows", decode_windows_bytes)


def open_text(path: Path) -> TextIO:
    """Open a text file and recognize its encoding. Raises UserError if it is too large or not a regular file."""
    file = open_regular_file(path)
    try:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_TABLE_BYTES:
            raise UserError(f"{path}: has {size} bytes; at most {MAX_TABLE_BYTES} are allowed; split the table")
        beginning = file.read(PROBED_BYTES)
        file.seek(0)
        return io.TextIOWrapper(file, encoding=recognize_encoding(beginning), errors="featgan.windows")
    except BaseException:
        file.close()
        raise


def recognize_encoding(beginning: bytes) -> str:
    """Return UTF-16 if a text starts with its mark or has a zero byte in most characters, and UTF-8 otherwise."""
    if beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    zero_counts = (beginning[0::2].count(0), beginning[1::2].count(0))
    if min(zero_counts) == 0 and max(zero_counts) > len(beginning) // 4:
        return "utf-16-le" if zero_counts[1] else "utf-16-be"
    return "utf-8-sig"


def read_numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, line) for every line that is not blank. Raises UserError if the file is not text."""
    try:
        with open_text(path) as file:
            line_number = 0
            while line := file.readline(MAX_LINE_LENGTH + 1):
                line_number += 1
                if len(line) > MAX_LINE_LENGTH:
                    raise UserError(
                        f"{path}, line {line_number}: longer than {MAX_LINE_LENGTH:,} characters; give a text file"
                    )
                if line_number > MAX_TABLE_LINES:
                    raise UserError(f"{path}: more than {MAX_TABLE_LINES:,} lines; split the table")
                if "\0" in line:
                    raise UserError(f"{path}: not a text file; export the table as CSV")
                if line.strip():
                    yield line_number, line.rstrip("\r\n")
    except UnicodeError:
        raise UserError(f"{path}: not a text file; export the table as CSV") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; check the file and its permissions") from error


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (location, line) for every line that is not blank. Raises UserError if the file is missing or not text."""
    for line_number, line in read_numbered_lines(path):
        yield f"{path}, line {line_number}", line


class TextTable:
    """A table of separated values; each iteration reads the file again.

    Without `header`, the first line contains the column names, unless it contains the name of an image: then the
    columns are `file` and `label`. With `header`, the column names in order, the first line may already contain data.
    """

    def __init__(self, path: Path, header: Sequence[str] | None = None) -> None:
        self.path = path
        first_line = next(read_lines(path), None)
        if first_line is None:
            raise UserError(f"{path}: the file is empty; write the column names to the first line")
        declared = DECLARED_DELIMITER.fullmatch(first_line[1])
        self.num_skipped_rows = 1 if declared else 0
        # If the columns are known, cells may contain semicolons: AffectNet separates landmarks by semicolons.
        self.delimiter = "," if header else declared[1] if declared else find_delimiter(first_line[1])
        first_rows = [cells for _, cells in islice(self.read_rows(), 3)]
        if not first_rows:
            raise UserError(f"{path}: the file contains no column names; write them to the first line")
        cells = first_rows[0]
        if header is None and any(has_image_suffix(cell.strip()) for cell in cells):
            header = name_data_columns(path, cells)
        self.has_header = header is None or cells[0].strip().lower() == header[0].lower()
        names = cells if self.has_header or header is None else header
        if self.has_header and has_row_names(first_rows):
            names = ["row name", *names]
        names = [name.strip() or f"column {index + 1}" for index, name in enumerate(names)]
        self.original_names = {name.lower(): name for name in names}
        """Lower-case column name => name as written in the header."""
        self.columns = tuple(name.lower() for name in names)
        if len(set(self.columns)) < len(self.columns):
            raise UserError(f"{path}, line 1: a column name occurs twice; rename one of the columns")

    def find_column(self, names: Sequence[str]) -> str:
        """Return the first column with one of these names, of which only letters and digits are compared, or ""."""
        column_by_word = {normalize_word(column): column for column in reversed(self.columns)}
        return next((column_by_word[word] for name in names if (word := normalize_word(name)) in column_by_word), "")

    def read_rows(self) -> Iterator[tuple[str, list[str]]]:
        """Yield (location, cells) for every row that is not blank. A quoted cell may contain anything."""
        yield from islice(self.read_all_rows(), self.num_skipped_rows, None)

    def read_all_rows(self) -> Iterator[tuple[str, list[str]]]:
        """Yield (location, cells) for every row that is not blank, also for a line that declares the delimiter."""
        if self.delimiter == " ":
            yield from ((location, split_at_spaces(line)) for location, line in read_lines(self.path))
            return
        consumed: list[int] = []  # the numbers of the lines of a row

        def read_consumed_lines() -> Iterator[str]:
            for line_number, line in read_numbered_lines(self.path):
                consumed.append(line_number)
                yield f"{line}\n"

        reader = csv.reader(read_consumed_lines(), delimiter=self.delimiter, strict=True, skipinitialspace=True)
        while True:
            consumed.clear()
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise UserError(
                    f"{self.path}, line {consumed[0]}: not a table with separated values ({error}); "
                    "check the quotes in this line"
                ) from None
            if cells is None:
                return
            if any(cell.strip() for cell in cells):
                yield f"{self.path}, line {consumed[0]}", cells

    def __iter__(self) -> Iterator[TableRow]:
        rows = self.read_rows()
        if self.has_header:
            next(rows)
        num_columns = len(self.columns)
        for location, cells in rows:
            surplus = cells[num_columns:]
            if len(cells) < num_columns or any(cell.strip() for cell in surplus):
                raise UserError(
                    f"{location}: {len(cells)} cells, but the table has {num_columns} columns; correct this line"
                )
            yield TableRow(location, dict(zip(self.columns, cells, strict=False)))

    def require_columns(self, *columns: str) -> None:
        """Raise UserError if a column is missing."""
        for column in columns:
            if column.lower() not in self.columns:
                listed, rest = self.columns[:MAX_LISTED_COLUMNS], len(self.columns) - MAX_LISTED_COLUMNS
                names = ", ".join(self.original_names[name] for name in listed) + (
                    f" and {rest} more" if rest > 0 else ""
                )
                raise UserError(f"{self.path}, line 1: no column {column}; the columns are {names}; add or rename one")


def find_delimiter(line: str) -> str:
    """Return the most frequent delimiter of a line; a line without any is separated by spaces."""
    delimiter = max(DELIMITERS, key=line.count)
    is_one_name = " " not in line.strip() or len(split_at_spaces(line)) == 1
    return delimiter if delimiter in line or is_one_name else " "


def split_at_spaces(line: str) -> list[str]:
    """Return the cells of a line that are separated by spaces; R writes texts in quotes."""
    return [quoted or word for quoted, word in re.findall(r'"([^"]*)"(?=\s|$)|(\S+)', line)]


def has_row_names(rows: Sequence[Sequence[str]]) -> bool:
    """Return whether the rows start with a name that is missing in the header, as R's write.table writes them."""
    header, *others = rows
    return bool(others) and all(len(row) == len(header) + 1 and row[-1].strip() for row in others)


def name_data_columns(path: Path, cells: Sequence[str]) -> list[str]:
    """Return the column names of a table without a header. Raises UserError if it has more than two columns."""
    if len(cells) > 2:
        raise UserError(f"{path}, line 1: no column names; insert a line with the column names, such as file,label")
    return ["file" if has_image_suffix(cell.strip()) else "label" for cell in cells]
