"""Labels of foreign samples: which file and field contains which label, and the checks of each value."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from featgan.data.readers.parsing import parse_name_list
from featgan.data.webdataset.samples import TarSample
from featgan.errors import UserError
from featgan.system.json_files import JsonError, parse_json
from featgan.system.plain_text import format_one_line

TARGETS = ("expression", "valence", "arousal", "identity")

MAX_TEXT_BYTES = 200
"""Size of the name of a class in bytes; a caption is longer."""

OPTION = "--layout-option label"
EXAMPLES = "cls, json:meta.label, txt, valence=json:valence or attributes.smile=json:smile"


@dataclass(frozen=True)
class LabelField:
    """A label and its place: the suffix of the file, and for JSON the keys of the nested objects."""

    target: str
    """`expression`, `valence`, `arousal`, `identity`, or `attributes.NAME`."""
    suffix: str
    keys: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "LabelField":
        """Return the field that a text such as `cls` or `valence=json:va.valence` describes."""
        target, equals, place = text.partition("=")
        if not equals:
            target, place = "expression", text
        suffix, colon, path = place.strip().partition(":")
        suffix = suffix.strip().lower()
        keys = tuple(path.split(".")) if colon else ()
        target = target.strip()
        is_attribute = target.startswith("attributes.") and len(target) > len("attributes.")
        if (
            (target not in TARGETS and not is_attribute)
            or not suffix
            or not all(keys)
            or (suffix == "json") != bool(keys)
        ):
            raise UserError(f"{OPTION}={text}: not a label; write {EXAMPLES}")
        return cls(target, suffix, keys)

    def read(self, sample: TarSample, tar_name: str) -> Any:
        """Return the checked value of a sample; None if it is unknown. Raises UserError for an unexpected type."""
        content = sample.labels.get(self.suffix)
        if content is None:
            return None
        place = f"{tar_name}: {format_one_line(sample.key)}.{self.suffix}"
        if not self.keys:
            return self.check(read_text(content, place), place)
        try:
            value = parse_json(content)
        except JsonError as error:
            raise UserError(f"{place}: {error}") from None
        for key in self.keys:
            if value is None:
                return None
            if not isinstance(value, dict):
                raise UserError(
                    f"{place}: {'.'.join(self.keys)} is not there, because a part of it is {kind_of(value)}"
                )
            value = value.get(key)
        return self.check(value, f"{place}: {'.'.join(self.keys)}")

    def check(self, value: Any, place: str) -> Any:
        """Return a value in the type of its label; None if it is unknown."""
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        if self.target in ("expression", "identity"):
            return check_class(value, place)
        number = read_number(value)
        if number is None:
            raise UserError(f"{place} is {kind_of(value)}, not a number")
        if self.target.startswith("attributes."):
            if number not in (0, 1):
                raise UserError(f"{place} is {number:g}; an attribute is 0, 1, true, false or null")
            return int(number)
        if not -1 <= number <= 1:
            raise UserError(f"{place} is {number:g}; {self.target} is between -1 and 1")
        return number


def check_class(value: Any, place: str) -> str | None:
    """Return the label of a class as text; None for a negative number, which means that it is unknown."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"{place} is {kind_of(value)}, not a class")
    text = str(value).strip()
    if len(text.encode("utf-8", "replace")) > MAX_TEXT_BYTES:
        raise UserError(f"{place} has more than {MAX_TEXT_BYTES} bytes; it is a caption and not a class")
    return None if text.startswith("-") and text[1:].isdigit() else text


def read_text(content: bytes, place: str) -> str:
    """Return the text of a file with one label."""
    try:
        return content.decode("utf-8-sig").strip("\0 \t\r\n")
    except UnicodeDecodeError:
        raise UserError(f"{place}: not UTF-8 text") from None


def read_number(value: Any) -> float | None:
    """Return a finite number, which may be written as text, or None."""
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def kind_of(value: Any) -> str:
    """Return the kind of a JSON value in a few words."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    kinds = {list: "a list", dict: "an object", str: "a text", int: "a number", type(None): "null"}
    return kinds[type(value)]


def parse_label_option(text: str) -> tuple[LabelField, ...]:
    """Return the fields of the option `label`: comma-separated, `none`, or empty for the default."""
    if text.strip().lower() == "none":
        return ()
    fields = tuple(LabelField.parse(part) for part in parse_name_list(text)) or (LabelField("expression", "cls"),)
    targets = [label_field.target for label_field in fields]
    if len(set(targets)) < len(targets):
        raise UserError(f"{OPTION}={text}: contains a label twice")
    return fields


def attribute_names(fields: Sequence[LabelField]) -> tuple[str, ...]:
    """Return the names of the attributes."""
    return tuple(f.target.partition(".")[2] for f in fields if f.target.startswith("attributes."))
