"""Texts from files and users, shown as they are: no character of them controls the terminal."""

import re
import sys

CONTROL_CHARACTER = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and newline, DEL, C1: escape sequences start with one of them
    "\u2028\u2029"  # line and paragraph separators
    "\u200e\u200f\u202a-\u202e\u2066-\u2069"  # change the direction of the text that follows
    "\ud800-\udfff]"  # surrogates, as in file names that are not UTF-8: they cannot be printed
)


def escape_control_characters(text: str) -> str:
    """Return the text with control characters as escape codes such as `\\x1b`; tabs and line breaks are kept."""
    return CONTROL_CHARACTER.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def format_one_line(text: str) -> str:
    """Return the text on one line: control characters, tabs and line breaks become escape codes."""
    return escape_control_characters(text).replace("\n", "\\n").replace("\t", "\\t")


def print_line(text: object, err: bool = False) -> None:
    """Print a text to standard output or, with `err`, to standard error, without control characters."""
    print(escape_control_characters(str(text)), file=sys.stderr if err else sys.stdout, flush=True)
