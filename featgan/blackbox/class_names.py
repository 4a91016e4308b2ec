"""Names of a classifier's outputs: read them from a SPEC or a file, and match those of two sources with synonyms."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featgan.data.readers.parsing import EXPRESSION_CODES, normalize_word
from featgan.data.readers.records import EXPRESSIONS
from featgan.errors import UserError
from featgan.system.files import describe_read_error, read_regular_file
from featgan.system.json_files import parse_json
from featgan.system.yaml_files import parse_yaml

NAME_FILE_SUFFIXES = (".txt", ".csv", ".json", ".yaml", ".yml")
MAX_NAME_FILE_BYTES = 1 << 20

NAME_KEYS = ("class_to_idx", "idx_to_class", "classes", "class_names", "names", "id2label", "label2id")
"""Keys under which checkpoints and configurations store the names of the classes."""


def parse_class_names(text: str) -> tuple[str, ...]:
    """Parse the option `classes` of a SPEC: names separated by commas, in quotes if they contain one, or a file.

    Raises UserError if the file cannot be read or contains no names.
    """
    if text.lower().endswith(NAME_FILE_SUFFIXES):
        return read_class_names(Path(text))
    rows = list(csv.reader([text], skipinitialspace=True))
    return tuple(name.strip() for name in rows[0] if name.strip()) if rows else ()


def format_class_names(names: Sequence[str]) -> str:
    """Format names as `parse_class_names` reads them."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(names)
    return buffer.getvalue()


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read names from a file: one name per line, or JSON or YAML with a list or a mapping of names and indices.

    Raises UserError if the file cannot be read or contains no names.
    """
    try:
        content = read_regular_file(path, MAX_NAME_FILE_BYTES)
    except OSError as error:
        raise UserError(f"classes={path}: {describe_read_error(error)}; check the path") from error
    suffix = path.suffix.lower()
    try:
        if suffix == ".json":
            names = find_class_names(parse_json(content))
        elif suffix in (".yaml", ".yml"):
            names = find_class_names(parse_yaml(content))
        else:
            names = parse_name_lines(content.decode("utf-8-sig"))
    except ValueError as error:
        raise UserError(
            f"classes={path}: not readable as {suffix[1:]}; write one name per line to a .txt file"
        ) from error
    if not names:
        raise UserError(
            f"classes={path}: contains no class names; write one name per line, in the order of the outputs"
        )
    return names


def parse_name_lines(text: str) -> tuple[str, ...]:
    """Parse one name per line, or lines of an index and a name, which may have another order."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    pairs = [line.replace(",", " ").replace(":", " ").replace("\t", " ").split(maxsplit=1) for line in lines]
    if lines and all(len(pair) == 2 and pair[0].isdecimal() for pair in pairs):
        return order_class_names({int(index): name.strip() for index, name in pairs})
    return tuple(lines)


def find_class_names(content: Any) -> tuple[str, ...]:
    """Return the class names in a checkpoint or a parsed file by index; empty if it contains none."""
    names = order_class_names(content)
    if names or not isinstance(content, Mapping):
        return names
    parts = [content, *(value for value in content.values() if isinstance(value, Mapping))]
    found = (order_class_names(part[key]) for part in parts for key in NAME_KEYS if key in part)
    return next((names for names in found if names), ())


def order_class_names(value: Any) -> tuple[str, ...]:
    """Return class names in order from a list, or from a mapping name => index or index => name; else ()."""
    if isinstance(value, Mapping):
        pairs = list(value.items())
        if pairs and all(isinstance(index, int) for _, index in pairs):
            pairs = [(index, name) for name, index in pairs]
        try:
            by_index = {int(index): name for index, name in pairs}
        except (TypeError, ValueError):
            return ()
        value = [by_index[index] for index in sorted(by_index)] if sorted(by_index) == list(range(len(pairs))) else []
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) and name for name in value):
        return ()
    return tuple(value)


def canonical_name(name: str) -> str:
    """Return the name of an expression for each of its synonyms; other names in lower case with single spaces."""
    code = EXPRESSION_CODES.get(normalize_word(name))
    return " ".join(name.replace("_", " ").casefold().split()) if code is None else EXPRESSIONS[code]


def match_names(names: Sequence[str], known_names: Sequence[str]) -> dict[int, int]:
    """Match names with known ones: index => index of the known name. Equal names match first, then synonyms.

    Names that are equal to several others after their synonyms are replaced do not match.
    """
    matches = {index: list(known_names).index(name) for index, name in enumerate(names) if name in known_names}
    canonical, known = [[canonical_name(name) for name in group] for group in (names, known_names)]
    counts, known_counts = Counter(canonical), Counter(known)
    for index, name in enumerate(canonical):
        is_unique = counts[name] == known_counts[name] == 1
        if index not in matches and is_unique and known.index(name) not in matches.values():
            matches[index] = known.index(name)
    return dict(sorted(matches.items()))


def translate_names(names: Sequence[str], known_names: Sequence[str]) -> tuple[str, ...]:
    """Replace every name that matches a known one by it; other names stay as they are."""
    matches = match_names(names, known_names)
    return tuple(known_names[matches[index]] if index in matches else name for index, name in enumerate(names))
