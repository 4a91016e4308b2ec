"""Class codes: which labels of a data set become which classes."""

import logging
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from featgan.data.readers.parsing import (
    EXPRESSION_CODES,
    UNUSABLE_CODES,
    UNUSABLE_EXPRESSIONS,
    is_numeric_code,
    natural_sort_key,
    normalize_word,
    parse_name_list,
)
from featgan.data.readers.records import EXPRESSIONS
from featgan.data.readers.text_tables import read_lines
from featgan.errors import UserError
from featgan.system.plain_text import format_one_line

logger = logging.getLogger(__name__)

MAX_CLASSES = 1000
"""A column with more classes than this probably contains names, ages or measured values."""

MAX_LISTED_NAMES = 10
"""Number of class names in a message."""

OPTION = "--layout-option classes"

RAF_DB_NAMES = ("surprise", "fear", "disgust", "happy", "sad", "anger", "neutral")
"""The classes of RAF-DB, whose codes start at 1."""
FER2013_NAMES = ("anger", "disgust", "fear", "happy", "sad", "surprise", "neutral")
"""The classes of FER2013, whose codes start at 0."""

KNOWN_CODES: Mapping[str, Mapping[str, str]] = {
    "affectnet": {str(code): name for code, name in enumerate((*EXPRESSIONS, *UNUSABLE_EXPRESSIONS.values()))},
    "raf-db": {str(code): name for code, name in enumerate(RAF_DB_NAMES, start=1)},
    "fer2013": {str(code): name for code, name in enumerate(FER2013_NAMES)},
}
"""Value of the option `classes` => the name of each code in this data set."""

TEXT_SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".names", ".lst")
"""Suffixes of files with class names."""

OPTION_HELP = f"{OPTION}=1=NAME,2=NAME, {OPTION}=FILE, or {OPTION}=affectnet, raf-db or fer2013"

MISSING_LABELS = frozenset({"", "nan", "null", "na", "n/a", "#n/a"})
"""Cells that mean that an image has no label, in lower case."""


@dataclass(frozen=True)
class ClassCodes:
    """The classes of a data set, and the class code of every label."""

    names: tuple[str, ...]
    """Class names by class code."""
    code_by_label: Mapping[str, int]
    skip_reason_by_label: Mapping[str, str] = field(default_factory=dict)
    """The reason why images with this label are skipped."""

    def find_skip_reason(self, text: str) -> str:
        """Return the reason why images with this label are skipped, or ""."""
        reasons = self.skip_reason_by_label
        return next((reasons[key] for key in label_keys(text) if key in reasons), "") if reasons else ""

    def find_code(self, text: str, location: str) -> int | None:
        """Return the class code of a label, or None if the image has no label. Raises UserError for other texts."""
        for key in label_keys(text):
            if key in self.code_by_label:
                return self.code_by_label[key]
        if is_missing_label(text):
            return None
        problem = f"{location}: unknown class {format_one_line(text[:40])!r}"
        if is_numeric_code(text) and not is_whole_number(text):
            raise UserError(f"{problem}; a class is a word or a whole number, so choose another column or correct it")
        raise UserError(f"{problem}; use one of {self.list_names()}, or name the classes with {OPTION_HELP}")

    def list_names(self) -> str:
        """Return the first class names, and the number of the others."""
        shown = ", ".join(self.names[:MAX_LISTED_NAMES])
        num_others = len(self.names) - MAX_LISTED_NAMES
        return f"{shown} and {num_others:,} others" if num_others > 0 else shown


def is_missing_label(text: str) -> bool:
    """Return whether a cell means that an image has no label."""
    return text.strip().lower() in MISSING_LABELS


def label_keys(text: str) -> tuple[str, ...]:
    """Return the forms under which a label is looked up: as written, without `.0`, without zeros, and as a word."""
    text = text.strip()
    other_form = str(int(float(text))) if is_whole_number(text) else normalize_word(text)
    return (text, clean_label(text), other_form or text)


def clean_label(text: str) -> str:
    """Return a label without surrounding spaces and with composed accents; 3.0 becomes 3."""
    text = unicodedata.normalize("NFC", text.strip())
    return text.partition(".")[0] if is_whole_number(text) else text


def is_whole_number(text: str) -> bool:
    """Return whether the text is an integer, which may be written as 3.0."""
    return re.fullmatch(r"[+-]?\d{1,18}(\.0*)?", text.strip()) is not None


def assign_class_codes(labels: Iterable[str], option: str | Sequence[str] = "", source: Path = Path()) -> ClassCodes:
    """Return the class codes of all labels of a data set.

    `option` is the value of the layout option `classes`: the name of a data set in KNOWN_CODES, names by code,
    `VALUE=NAME` pairs, or a text file below `source` with one of them per line. Without it, known expressions get
    AffectNet codes if there are no other labels. Otherwise every label is a separate class, in the order of numbers.

    Raises UserError if the option is not valid or if there are too many classes.
    """
    texts = {clean_label(label) for label in labels}
    if option:
        return apply_classes_option(texts, option, source)
    words = {normalize_word(text) for text in texts}
    if words and words <= EXPRESSION_CODES.keys() | UNUSABLE_CODES.keys() and words & EXPRESSION_CODES.keys():
        return code_by_expressions({})
    names = [text for text in texts if not is_numeric_code(text) or is_whole_number(text)]
    if len(names) > MAX_CLASSES:
        raise UserError(
            f"{source}: {len(names):,} different classes, such as {format_one_line(names[0][:40])!r}; "
            f"at most {MAX_CLASSES:,} are possible: choose another column, or join classes with {OPTION}"
        )
    report_own_classes(names, words)
    return number_names(sorted(names, key=class_sort_key))


def class_sort_key(name: str) -> tuple[object, ...]:
    """Return a sort key that orders numbers by value, before words, and numbers in words by value."""
    return (0, int(float(name)), name) if is_whole_number(name) else (1, 0, natural_sort_key(name))


def number_names(names: Sequence[str]) -> ClassCodes:
    """Return one class per name, in the given order."""
    code_by_label = {name: code for code, name in enumerate(names)}
    return ClassCodes(tuple(format_one_line(name) for name in names), code_by_label)


def report_own_classes(names: Sequence[str], words: set[str]) -> None:
    """Log how numbers, and words next to known expressions, are read, because both can be a mistake."""
    numbers = sorted(int(float(name)) for name in names if is_whole_number(name))
    if numbers:
        logger.info(f"the labels {numbers[0]} .. {numbers[-1]} become classes; to name them, use {OPTION_HELP}")
    for spellings in find_similar_names(names):
        listed_names = " and ".join(repr(format_one_line(name[:40])) for name in spellings)
        logger.warning(
            f"the classes {listed_names} differ in case or spaces only; if they are one class, give them the "
            f"same name with {OPTION}"
        )
    others = sorted(
        name for name in names if normalize_word(name) not in EXPRESSION_CODES and not is_numeric_code(name)
    )
    if words & EXPRESSION_CODES.keys() and others:
        logger.info(
            f"{format_one_line(others[0][:40])!r} is not one of the known expressions, so every label becomes a class "
            "with its own name"
        )


def find_similar_names(names: Iterable[str]) -> list[list[str]]:
    """Return the groups of names that differ in case or spaces only, sorted."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        groups["".join(name.casefold().split())].append(name)
    return [group for group in groups.values() if len(group) > 1]


def spelling_of(label: str) -> str | int:
    """Return what all spellings of a label have in common: the code of an expression, or the label in lower case."""
    return EXPRESSION_CODES.get(normalize_word(label), clean_label(label).casefold())


# -- the option `classes` ----------------------------------------------------------------------------------------------


def apply_classes_option(texts: set[str], option: str | Sequence[str], source: Path) -> ClassCodes:
    """Return the class codes that the option defines."""
    entries = read_option_entries(option, source)
    known = KNOWN_CODES.get(entries[0].lower()) if len(entries) == 1 else None
    if known is not None:
        return code_by_expressions(known) if entries[0].lower() == "affectnet" else code_by_pairs(known)
    pairs = [entry.partition("=") for entry in entries]
    if all(equals for _, equals, _ in pairs):
        return code_by_pairs({value.strip(): name.strip() for value, _, name in pairs})
    if any(equals for _, equals, _ in pairs):
        raise UserError(f"{OPTION}: only some entries have the form VALUE=NAME; write all of them in this form")
    return code_by_list(entries, texts)


def read_option_entries(option: str | Sequence[str], source: Path) -> tuple[str, ...]:
    """Return the entries of the option, or of the text file that it names. Raises UserError if there are none."""
    path = source / option if isinstance(option, str) else None
    check_names_file(option, source)
    if path is None or not path.is_file():
        entries = parse_name_list(option)
    else:
        # `1,happy`, `1;happy` and `1 happy` mean 1=happy; a line with one word is a name.
        lines = [re.split(r"[=,;\t]|(?<=\d)\s+", line.strip(), maxsplit=1) for _, line in read_lines(path)]
        entries = tuple("=".join(cell.strip().strip('"') for cell in cells) for cells in lines)
    entries = tuple(unicodedata.normalize("NFC", entry) for entry in entries)
    if not entries:
        raise UserError(f"{OPTION} {option!r}: contains no names; use {OPTION_HELP}")
    return entries


def check_names_file(option: str | Sequence[str], source: Path = Path()) -> None:
    """Raise UserError if the option names a file that does not exist, and is not a list of names."""
    if not isinstance(option, str) or re.search(r"[,=\n]", option):
        return
    if (Path(option).suffix.lower() in TEXT_SUFFIXES or "/" in option) and not (source / option).is_file():
        raise UserError(f"{source / option}: no such file; check {OPTION}")


def code_by_expressions(names: Mapping[str, str]) -> ClassCodes:
    """Return AffectNet's classes, with all spellings of their names, and with `names`, a name by label."""
    code_by_label = {**EXPRESSION_CODES, **{label: EXPRESSION_CODES.get(name, -1) for label, name in names.items()}}
    skip_reasons = {word: UNUSABLE_EXPRESSIONS[code] for word, code in UNUSABLE_CODES.items()}
    skip_reasons |= {label: name for label, name in names.items() if name not in EXPRESSION_CODES}
    return ClassCodes(EXPRESSIONS, {label: code for label, code in code_by_label.items() if code >= 0}, skip_reasons)


def code_by_pairs(name_by_label: Mapping[str, str]) -> ClassCodes:
    """Return the classes of `VALUE=NAME` pairs, in the given order; several values can have the same name."""
    names = tuple(dict.fromkeys(name_by_label.values()))
    if "" in names:
        raise UserError(f"{OPTION}: a name is empty; use {OPTION_HELP}")
    code_by_label = {name: code for code, name in enumerate(names)}
    spellings = {
        alias: code_by_label[EXPRESSIONS[code]]
        for alias, code in EXPRESSION_CODES.items()
        if EXPRESSIONS[code] in code_by_label
    }
    return ClassCodes(
        names, spellings | code_by_label | {label: code_by_label[name] for label, name in name_by_label.items()}
    )


def code_by_list(names: Sequence[str], texts: set[str]) -> ClassCodes:
    """Return the classes of names by code; the codes start at 1 if the labels are 1 .. the number of names."""
    codes = {int(float(text)) for text in texts if is_whole_number(text) and text not in names}
    start = 1 if len(names) in codes and min(codes) >= 1 else 0
    code_by_label = {str(code): code - start for code in range(start, start + len(names))}
    return ClassCodes(tuple(names), code_by_label | {name: code for code, name in enumerate(names)})
