"""Parsing of labels and file names in all supported spellings.

Every parser takes the location of the text (file and line) for its error messages.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from featgan.data.readers.records import EXPRESSIONS, BoundingBox
from featgan.errors import UserError
from featgan.system.plain_text import format_one_line

UNUSABLE_EXPRESSIONS = {8: "none", 9: "uncertain", 10: "no-face"}
"""AffectNet class codes of images without an expression; the names are used as skip reasons."""

EXPRESSION_ALIASES = {
    "neutral": "neutral neutrality calm",
    "happy": "happy happiness happily joy joyful smile smiling",
    "sad": "sad sadness",
    "surprise": "surprise surprised",
    "fear": "fear fearful afraid scared",
    "disgust": "disgust disgusted",
    "anger": "anger angry",
    "contempt": "contempt contemptuous",
}
EXPRESSION_CODES = {
    alias: EXPRESSIONS.index(name) for name, aliases in EXPRESSION_ALIASES.items() for alias in aliases.split()
}
UNUSABLE_CODES = {"none": 8, "uncertain": 9, "noface": 10, "nonface": 10}

SPLIT_ALIASES = {
    "train": "train training trainset 0",
    "validation": "validation val valid dev eval valset validationset publictest 1",
    "test": "test testing testset privatetest 2",
}
SPLIT_BY_ALIAS = {alias: name for name, aliases in SPLIT_ALIASES.items() for alias in aliases.split()}

SPLIT_FOLDER_WORDS = frozenset(("set", "seg", "data", "dataset", "image", "images", "img", "imgs", "split", "folder"))
"""Words that can be next to the name of a split in the name of a folder."""

MISSING_AFFECT = -2.0
"""AffectNet's marker for a missing valence or arousal."""

ATTRIBUTE_VALUES: dict[str, int | None] = {
    **dict.fromkeys(("1", "true", "yes", "y", "t"), 1),
    **dict.fromkeys(("0", "-1", "false", "no", "n", "f"), 0),
    "": None,
}
"""Value of an attribute in lower case => 1, 0, or None if it is unknown."""

MISSING_VALUES = ("", "nan", "none", "null", "na", "n/a")


def normalize_word(text: str) -> str:
    """Keep letters and digits only, in lower case: "Human-Label" and "human_label" become equal."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def parse_number(text: str, location: str, name: str) -> float | None:
    """Return a finite number, or None for an empty cell or a missing-value marker. Raises UserError otherwise."""
    if text.strip().lower() in MISSING_VALUES:
        return None
    try:
        number = float(with_decimal_point(text))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{location}: {name} {text[:40]!r} is not a number; correct it, or leave the cell empty")
    return number


def with_decimal_point(text: str) -> str:
    """Return a number that is written with a decimal comma, as Excel does in many countries, with a decimal point."""
    return re.sub(r"^\s*([+-]?\d*),(\d+)\s*$", r"\1.\2", text)


def parse_affect_value(text: str, location: str, name: str) -> float | None:
    """Return valence or arousal in [-1, 1], or None if it is missing or -2. Raises UserError otherwise."""
    number = parse_number(text, location, name)
    if number is None or number == MISSING_AFFECT:
        return None
    if abs(number) > 1.001:
        raise UserError(f"{location}: {name} {number:g} is not between -1 and 1; write -2 for a missing value")
    return max(-1.0, min(1.0, number))


def parse_valence_arousal(valence: str, arousal: str, location: str) -> dict[str, float | None]:
    """Return valence and arousal as fields of a record."""
    return {
        "valence": parse_affect_value(valence, location, "valence"),
        "arousal": parse_affect_value(arousal, location, "arousal"),
    }


def parse_code(text: str, location: str, num_classes: int, name: str = "expression") -> int:
    """Return an integer in 0 .. num_classes - 1, which may be written as 3.0. Raises UserError otherwise."""
    number = parse_number(text, location, name)
    if number is None or number != int(number) or not 0 <= number < num_classes:
        raise UserError(
            f"{location}: {name} {text[:40]!r} is not a class code; use an integer in 0 .. {num_classes - 1}"
        )
    return int(number)


def parse_expression(text: str, location: str) -> int:
    """Return the AffectNet class code 0 .. 10 of a code or of a name in a common form. Raises UserError otherwise."""
    word = normalize_word(text)
    if word in EXPRESSION_CODES:
        return EXPRESSION_CODES[word]
    if word in UNUSABLE_CODES:
        return UNUSABLE_CODES[word]
    if re.search(r"[a-z]", word):
        raise UserError(f"{location}: unknown expression {text[:40]!r}; use one of {', '.join(EXPRESSIONS)}")
    return parse_code(text, location, len(EXPRESSIONS) + len(UNUSABLE_EXPRESSIONS))


def is_numeric_code(text: str) -> bool:
    """Return whether the text is a number."""
    return re.fullmatch(r"[+-]?\d+(\.\d*)?", text.strip()) is not None


def parse_class(text: str, location: str, classes: Sequence[str]) -> int:
    """Return the class code of a code or a class name. Raises UserError for others."""
    if text in classes:
        return list(classes).index(text)
    if not is_numeric_code(text):
        raise UserError(f"{location}: unknown class {text[:40]!r}; use one of {', '.join(classes)}")
    return parse_code(text, location, len(classes), "class")


def parse_split(text: str, location: str) -> str:
    """Return "train", "validation", "test", or "" for an empty cell. Raises UserError otherwise."""
    if text.strip().lower() in MISSING_VALUES:
        return ""
    split = SPLIT_BY_ALIAS.get(normalize_word(re.sub(r"\.0*$", "", text.strip())))
    if split is None:
        raise UserError(f"{location}: unknown split {text[:40]!r}; use train, validation or test")
    return split


def split_from_folder_name(name: str) -> str:
    """Return the split that a folder name stands for, such as `train`, `seg_train` or `test_images`, or "".

    A number is a class name and not a split.
    """
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    splits = [SPLIT_BY_ALIAS[word] for word in words if word in SPLIT_BY_ALIAS and not word.isdigit()]
    others = [word for word in words if word not in SPLIT_BY_ALIAS]
    if len(splits) == 1 and all(word in SPLIT_FOLDER_WORDS for word in others):
        return splits[0]
    return "" if name.isdigit() else SPLIT_BY_ALIAS.get(normalize_word(name), "")


def parse_attribute(text: str, location: str, name: str) -> int | None:
    """Return 1 for 1, true or yes; 0 for 0, -1, false or no; None if it is unknown. Raises UserError otherwise."""
    word = attribute_word(text)
    if word not in ATTRIBUTE_VALUES:
        raise UserError(
            f"{location}: attribute {name} {format_one_line(text[:40])!r} is not valid; use 0 and 1, -1 and 1, "
            "true and false, or yes and no"
        )
    return ATTRIBUTE_VALUES[word]


def attribute_word(text: str) -> str:
    """Return the value of an attribute in lower case and without `.0`; "" if it is unknown."""
    word = re.sub(r"^([+-]?\d+)\.0*$", r"\1", with_decimal_point(text).strip().lower())
    return "" if word in MISSING_VALUES else word


def parse_bounding_box(cells: Sequence[str], location: str) -> BoundingBox | None:
    """Return x, y, width, height in integer pixels, or None if a value is missing or the bounding box is empty."""
    numbers = [parse_number(text, location, "bounding box") for text in cells]
    x, y, width, height = (0 if number is None else round(number) for number in numbers)
    return (x, y, width, height) if None not in numbers and width > 0 and height > 0 else None


def parse_pixels(text: str, location: str) -> bytes:
    """Return the gray image that a cell contains as text, such as `70 82 ...` in FER2013, as a PGM file."""
    try:
        pixels = bytes(map(int, text.split()))
    except ValueError:
        pixels = b""
    side = math.isqrt(len(pixels))
    if not pixels or side * side < len(pixels):
        raise UserError(
            f"{location}: the pixels are not those of a square image; give side x side integers in 0 .. 255"
        )
    return b"P5 %d %d 255\n" % (side, side) + pixels


def resolve_path_below(folder: Path, name: str, location: str) -> Path:
    """Return the path of `name` in `folder`. Raises UserError if the name is empty or points outside the folder."""
    relative = PurePosixPath(name.strip().replace("\\", "/"))
    drive = re.match(r"[A-Za-z]:", name.strip())
    if drive or relative.is_absolute() or ".." in relative.parts or "\0" in name:
        raise UserError(
            f"{location}: the path {name[:80]!r} points outside {folder}; use a path relative to that folder"
        )
    if not relative.parts:
        raise UserError(f"{location}: the file name is empty; correct this line")
    return folder / relative


def parse_name_list(text: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the names in an option, which is a comma-separated string or a sequence."""
    names = text.split(",") if isinstance(text, str) else text or ()
    return tuple(name.strip() for name in names if name.strip())


def natural_sort_key(name: str) -> tuple[Any, ...]:
    """Return a sort key that orders numbers in names by value, so that class2 comes before class10."""
    return tuple(
        (0, int(token), "") if token.isdigit() else (1, 0, token) for token in re.split(r"(\d+)", name) if token
    )
