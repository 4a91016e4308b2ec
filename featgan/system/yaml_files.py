"""Read YAML: the only module that parses it. Size, depth, digits and aliases are checked before values are built."""

import codecs
import re
from pathlib import Path
from typing import Any

import yaml

from featgan.errors import UserError
from featgan.system.files import read_regular_file, user_friendly_read_errors
from featgan.system.limits import MAX_DEPTH, MAX_NUMBER_DIGITS, MAX_YAML_BYTES, MAX_YAML_VALUES

SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The loader for plain values; the C version, which most installations have, is ten times as fast."""

TEXT_TAGS = tuple(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "merge"))
"""Tags that TextLoader recognizes in plain values."""


class TextLoader(SafeLoader):  # type: ignore[misc]
    """Loads every value as the text that the file contains, except for null, true and false.

    YAML 1.1 reads 24:00:00 as a number in base 60, 010 as an octal number, and `no` and `off` as booleans.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern if not tag.endswith("bool") else re.compile("true|True|TRUE|false|False|FALSE"))
                for tag, pattern in resolvers if tag in TEXT_TAGS]
        for first, resolvers in SafeLoader.yaml_implicit_resolvers.items()
    }  # fmt: skip


MAX_DIRECTIVES = 100
"""Number of directives (%TAG, %YAML); libyaml compares each one with all others."""

DIRECTIVE = re.compile(r"^%", re.MULTILINE)

NUMBER = re.compile(r"[-+.]?[0-9][0-9a-fA-FoxX_:.+-]*")
NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")

CONSTRUCTION_ERRORS = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
"""Errors of PyYAML for values that do not fit their tag, such as the date 2024-99-99 or `!!bool 2`."""


class YamlError(ValueError):
    """A text that is not valid YAML or exceeds a limit; the message is the problem, `line` counts from 1."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.line = line


class StructureCheck:
    """Follows the events of the YAML parser, and counts values as if every alias were replaced by its value."""

    def __init__(self) -> None:
        self.num_values = self.num_characters = 0
        self.open_anchors: list[tuple[str | None, int, int]] = []
        self.anchored: dict[str, tuple[int, int]] = {}

    def add_event(self, event: yaml.Event) -> None:
        """Count an event. Raises YamlError if a limit is exceeded."""
        line = event.start_mark.line + 1 if event.start_mark else None
        if isinstance(event, yaml.AliasEvent):
            # An alias inside its own value has no size yet; it would be infinite.
            values, characters = self.anchored.get(str(event.anchor), (MAX_YAML_VALUES, 0))
            self.count_values(values, characters)
        elif isinstance(event, yaml.ScalarEvent):
            check_digits(event, line)
            self.open_value(event.anchor)
            self.num_characters += len(event.value)
            self.close_value()
        elif isinstance(event, yaml.CollectionStartEvent):
            self.open_value(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            self.close_value()
        if len(self.open_anchors) > MAX_DEPTH:
            raise YamlError(f"more than {MAX_DEPTH} nested levels", line)
        if self.num_values > MAX_YAML_VALUES or self.num_characters > MAX_YAML_BYTES:
            raise YamlError(f"its aliases (*name) or lists expand to more than {MAX_YAML_VALUES} values", line)

    def count_values(self, values: int, characters: int) -> None:
        self.num_values += values
        self.num_characters += characters

    def open_value(self, anchor: str | None) -> None:
        self.open_anchors.append((anchor, self.num_values, self.num_characters))
        self.num_values += 1

    def close_value(self) -> None:
        anchor, values, characters = self.open_anchors.pop()
        if anchor is not None:
            self.anchored[anchor] = (self.num_values - values, self.num_characters - characters)


def check_digits(event: yaml.ScalarEvent, line: int | None) -> None:
    """Raise YamlError for a number with too many digits."""
    is_number = event.implicit[0] and NUMBER.fullmatch(event.value)
    if len(event.value) > MAX_NUMBER_DIGITS and (is_number or event.tag in NUMBER_TAGS):
        raise YamlError(f"a number with more than {MAX_NUMBER_DIGITS} digits", line)


def parse_yaml(content: bytes | str, loader_class: Any = SafeLoader) -> Any:
    """Parse YAML text of plain values. Raises YamlError if it is invalid, or if it exceeds a limit."""
    try:
        text = content if isinstance(content, str) else decode_text(content)
        if len(DIRECTIVE.findall(text)) > MAX_DIRECTIVES:
            raise YamlError(f"more than {MAX_DIRECTIVES} lines that start with %")
        check = StructureCheck()
        for event in yaml.parse(text, Loader=SafeLoader):
            check.add_event(event)
        loader = loader_class(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
        raise YamlError(f"not valid YAML: {problem}", mark.line + 1 if mark else None) from None
    except UnicodeError:
        raise YamlError("not UTF-8 text; save it as UTF-8") from None
    except YamlError:
        raise
    except CONSTRUCTION_ERRORS as error:
        problem = str(error) if type(error) is ValueError else "a value does not fit its tag"
        raise YamlError(f"not valid YAML: {problem}") from None


def decode_text(content: bytes) -> str:
    """Decode UTF-8, or UTF-16 with a byte order mark, which Windows PowerShell writes."""
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if is_utf16 else "utf-8-sig")


def read_yaml(path: Path, max_bytes: int = MAX_YAML_BYTES, loader_class: Any = SafeLoader) -> Any:
    """Read a YAML file.

    Raises UserError if the file is missing, is not a regular file, exceeds a limit or is not valid YAML. Raises OSError
    after an error of a network file system, which another attempt may not have.
    """
    with user_friendly_read_errors(path, "check the path and its permissions"):
        content = read_regular_file(path, max_bytes)
    try:
        return parse_yaml(content, loader_class)
    except YamlError as error:
        location = path if error.line is None else f"{path}:{error.line}"
        raise UserError(f"{location}: {error}") from None


def read_yaml_mapping(path: Path, max_bytes: int = MAX_YAML_BYTES, loader_class: Any = SafeLoader) -> dict[Any, Any]:
    """Read a YAML file that contains a mapping or nothing; errors as in `read_yaml`."""
    content = read_yaml(path, max_bytes, loader_class)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a mapping; write lines such as `key: value`")
    return content
