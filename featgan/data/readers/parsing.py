"""The labels and file names of data sets in the many ways they are written, each checked where it is read."""

import math
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from featgan.data.readers.records import EXPRESSIONS, Box
from featgan.errors import UserError

UNUSABLE = {8: "none", 9: "uncertain", 10: "no-face"}
"""AffectNet's codes for images without an expression; the names are the reasons for leaving them out."""

ALIASES = {
    "neutral": "neutral neutrality calm",
    "happy": "happy happiness happily joy joyful smile smiling",
    "sad": "sad sadness",
    "surprise": "surprise surprised",
    "fear": "fear fearful afraid scared",
    "disgust": "disgust disgusted",
    "anger": "anger angry",
    "contempt": "contempt contemptuous",
}
CODES = {alias: EXPRESSIONS.index(name) for name, aliases in ALIASES.items() for alias in aliases.split()}
UNUSABLE_NAMES = {"none": 8, "uncertain": 9, "noface": 10, "nonface": 10}

SPLITS = {
    "train": "train training trainset 0",
    "validation": "validation val valid dev valset validationset publictest 1",
    "test": "test testing testset privatetest 2",
}
SPLIT_NAMES = {alias: name for name, aliases in SPLITS.items() for alias in aliases.split()}

NO_ANNOTATION = -2.0
"""How AffectNet marks a missing valence or arousal."""

MISSING = ("", "nan", "none", "null", "na", "n/a")


def squeeze(text: str) -> str:
    """Lower case, letters and digits only: "Human-Label" and "human_label" are one."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def parse_number(text: str, place: str, name: str) -> float | None:
    """A finite number, or None where the cell is empty or says so; UserError for anything else."""
    if text.strip().lower() in MISSING:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{place}: {name} {text[:40]!r} is not a number")
    return number


def parse_affect(text: str, place: str, name: str) -> float | None:
    """Valence or arousal in [-1, 1], or None where it is missing or -2."""
    number = parse_number(text, place, name)
    if number is None or number == NO_ANNOTATION:
        return None
    if abs(number) > 1.001:
        raise UserError(f"{place}: {name} {number:g} is outside -1 .. 1 (-2 marks a missing one)")
    return max(-1.0, min(1.0, number))


def affect(valence: str, arousal: str, place: str) -> dict[str, float | None]:
    """Both, as fields of a record."""
    return {"valence": parse_affect(valence, place, "valence"), "arousal": parse_affect(arousal, place, "arousal")}


def parse_code(text: str, place: str, num_classes: int, name: str = "expression") -> int:
    """A whole number in 0 .. num_classes - 1, also written as 3.0."""
    number = parse_number(text, place, name)
    if number is None or number != int(number) or not 0 <= number < num_classes:
        raise UserError(f"{place}: {name} {text[:40]!r} is not a whole number in 0 .. {num_classes - 1}")
    return int(number)


def parse_expression(text: str, place: str) -> int:
    """AffectNet's code 0 .. 10 of a code or a name in any usual form; UserError for others."""
    word = squeeze(text)
    if word in CODES:
        return CODES[word]
    if word in UNUSABLE_NAMES:
        return UNUSABLE_NAMES[word]
    if re.search(r"[a-z]", word):
        raise UserError(f"{place}: unknown expression {text[:40]!r}; known are {', '.join(EXPRESSIONS)}")
    return parse_code(text, place, len(EXPRESSIONS) + len(UNUSABLE))


def is_code(text: str) -> bool:
    """Whether it is written as a number."""
    return re.fullmatch(r"[+-]?\d+(\.\d*)?", text.strip()) is not None


def parse_class(text: str, place: str, classes: Sequence[str]) -> int:
    """The code of a class given by code or by name."""
    if text in classes:
        return list(classes).index(text)
    if not is_code(text):
        raise UserError(f"{place}: unknown class {text[:40]!r}; known are {', '.join(classes)}")
    return parse_code(text, place, len(classes), "class")


def parse_split(text: str, place: str) -> str:
    """ "train", "validation", "test", or "" where the cell is empty."""
    if not text.strip():
        return ""
    split = SPLIT_NAMES.get(squeeze(text))
    if split is None:
        raise UserError(f"{place}: unknown split {text[:40]!r}; known are train, validation and test")
    return split


def folder_split(name: str) -> str:
    """The split that a folder's name tells, or ""; a number is no split but a class."""
    return "" if name.isdigit() else SPLIT_NAMES.get(squeeze(name), "")


def parse_attribute(text: str, place: str, name: str) -> int:
    """1, or 0 for 0 and -1."""
    if text.strip() not in ("-1", "0", "1"):
        raise UserError(f"{place}: attribute {name} {text[:40]!r} is not -1, 0 or 1")
    return int(text.strip() == "1")


def parse_box(cells: Sequence[str], place: str) -> Box | None:
    """x, y, width, height in whole pixels; None where one is missing or the box is empty."""
    numbers = [parse_number(text, place, "face box") for text in cells]
    x, y, width, height = (0 if number is None else round(number) for number in numbers)
    return (x, y, width, height) if None not in numbers and width > 0 and height > 0 else None


def path_below(folder: Path, name: str, place: str) -> Path:
    """The file `name` in `folder`; UserError when it is empty or leads out of the folder."""
    relative = PurePosixPath(name.strip().replace("\\", "/"))
    drive = re.match(r"[A-Za-z]:", name.strip())
    if drive or relative.is_absolute() or ".." in relative.parts or "\0" in name:
        raise UserError(f"{place}: the path {name[:80]!r} leads out of {folder}; use paths relative to it")
    if not relative.parts:
        raise UserError(f"{place}: no file name")
    return folder / relative


def split_list(text: str | Sequence[str] | None) -> tuple[str, ...]:
    """An option of several names, given as one text with commas or as a sequence."""
    parts = text.split(",") if isinstance(text, str) else text or ()
    return tuple(part.strip() for part in parts if part.strip())


def natural_order(name: str) -> tuple[Any, ...]:
    """2 before 10."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part)
