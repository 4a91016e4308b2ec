"""Read JSON: the only module that parses it. Size, depth and digits are checked before the parser runs."""

import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from featgan.errors import UserError
from featgan.system.files import describe_read_error, open_regular_file, read_regular_file, user_friendly_read_errors
from featgan.system.limits import (
    MAX_DEPTH,
    MAX_JSON_BYTES,
    MAX_JSON_VALUES,
    MAX_LINE_BYTES,
    MAX_LOG_BYTES,
    MAX_NUMBER_DIGITS,
)

logger = logging.getLogger(__name__)

DEFAULT_REMEDY = "copy the file again or remove it"

STRING = re.compile(rb'"[^"]*+(?:"|\Z)')
"""A string without escaped quotes, complete or up to the end of the text, so that a text is searched in linear time."""

DIGITS_AS_ZEROS = bytes.maketrans(b"123456789", b"000000000")
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))


class JsonError(ValueError):
    """A text that is not valid JSON or exceeds a limit; the message is the problem."""


def parse_json(content: bytes | str) -> Any:
    """Parse JSON text in UTF-8. Raises JsonError if it is invalid, or if its depth, digits or values exceed a limit."""
    encoded = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    check_structure(encoded)
    try:
        text = encoded.decode("utf-8-sig")
        value = json.loads(text)
        if SURROGATE.search(text):  # half of a pair cannot be printed or written
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError:
        raise JsonError("not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise JsonError(f"not valid JSON (line {error.lineno}: {error.msg})") from None
    except (ValueError, RecursionError):
        raise JsonError("not valid JSON") from None
    return value


def check_structure(content: bytes) -> None:
    """Raise JsonError if the depth, the number of values or the digits of a number exceed a limit."""
    unescaped = content.replace(rb"\\", b"").replace(rb"\"", b"")
    if unescaped.count(b'"') > 2 * MAX_JSON_VALUES:
        raise JsonError(f"more than {MAX_JSON_VALUES} values")
    outside_strings = STRING.sub(b"", unescaped)
    if b"0" * (MAX_NUMBER_DIGITS + 1) in outside_strings.translate(DIGITS_AS_ZEROS):
        raise JsonError(f"a number with more than {MAX_NUMBER_DIGITS} digits")
    num_values = sum(outside_strings.count(character) for character in (b",", b":", b"[", b"{"))
    if num_values > MAX_JSON_VALUES:
        raise JsonError(f"more than {MAX_JSON_VALUES} values")
    brackets = outside_strings.translate(None, NOT_BRACKETS)
    for _ in range(MAX_DEPTH):
        if not brackets:
            return
        # Each pass removes the innermost lists and mappings, so the number of passes is the depth.
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    if len(brackets) > MAX_DEPTH:
        raise JsonError(f"more than {MAX_DEPTH} nested levels")


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES, remedy: str = DEFAULT_REMEDY) -> Any:
    """Read a JSON file.

    Raises UserError, which ends with `remedy`, if the file is missing, is not a regular file, exceeds a limit or is not
    valid JSON. Raises OSError after an error of a network file system, which another attempt may not have.
    """
    with user_friendly_read_errors(path, remedy):
        content = read_regular_file(path, max_bytes)
    try:
        return parse_json(content)
    except JsonError as error:
        raise UserError(f"{path}: {error}; {remedy}") from None


def read_json_object(path: Path, max_bytes: int = MAX_JSON_BYTES, remedy: str = DEFAULT_REMEDY) -> dict[str, Any]:
    """Read a JSON file that contains an object; errors as in `read_json`."""
    content = read_json(path, max_bytes, remedy)
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; {remedy}")
    return content


reported_files: set[tuple[str, int]] = set()
"""Path and modification time in nanoseconds of the side files that were reported as skipped."""


def report_skipped(path: Path, problem: str) -> None:
    """Log a warning that a side file, or a part of it, is skipped; once for each version of the file."""
    try:
        version = (str(path), path.stat().st_mtime_ns)
    except OSError:
        version = (str(path), 0)
    if version not in reported_files:
        reported_files.add(version)
        logger.warning(f"{path}: skipped: {problem}")


def read_side_file(
    path: Path, max_bytes: int = MAX_JSON_BYTES, unreadable: dict[str, Any] | None = None
) -> dict[str, Any] | None:
    """Read a JSON object that the work can continue without.

    Returns None if the file is missing, None with a warning if it is damaged, and `unreadable` with a warning if the
    file system cannot read it now.
    """
    try:
        content = parse_json(read_regular_file(path, max_bytes))
    except FileNotFoundError:
        return None
    except (UserError, JsonError) as error:
        report_skipped(path, str(error).removeprefix(f"{path}: "))
        return None
    except OSError as error:
        report_skipped(path, describe_read_error(error))
        return unreadable
    if not isinstance(content, dict):
        report_skipped(path, "not a JSON object")
        return None
    return content


def read_json_lines(path: Path, max_bytes: int = MAX_LOG_BYTES) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a file with one object per line.

    A missing file is empty. Damaged lines are skipped with one warning; of a file above `max_bytes`, the end is read.
    The last line is not reported if it is incomplete, since another process may be writing it.
    """
    num_skipped = 0
    try:
        for line in read_lines(path, max_bytes):
            entry = parse_line(line)
            if entry is not None:
                yield entry
            elif line.endswith(b"\n") and line.strip():
                num_skipped += 1
    except FileNotFoundError:
        return
    except UserError as error:
        report_skipped(path, str(error).removeprefix(f"{path}: "))
    except OSError as error:
        report_skipped(path, describe_read_error(error))
    if num_skipped:
        report_skipped(path, f"{num_skipped} damaged lines" if num_skipped > 1 else "1 damaged line")


def parse_line(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object of a line; None if the line does not contain one."""
    try:
        content = parse_json(line)
    except JsonError:
        return None
    return content if isinstance(content, dict) else None


def read_lines(path: Path, max_bytes: int = MAX_LOG_BYTES) -> Iterator[bytes]:
    """Yield the lines of a regular file, at most the last `max_bytes` bytes; a longer line than the limit is cut."""
    with open_regular_file(path) as file:
        skipped_bytes = os.fstat(file.fileno()).st_size - max_bytes
        if skipped_bytes > 0:
            file.seek(skipped_bytes)
            file.readline(MAX_LINE_BYTES)
        while line := file.readline(MAX_LINE_BYTES):
            yield line
