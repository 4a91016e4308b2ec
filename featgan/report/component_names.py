"""Names that the user gives to components: RUN/names.yaml, which may be edited by hand, too."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from featgan.errors import UserError
from featgan.system.files import write_whole

FILE = "names.yaml"
LONGEST = 40
Names = dict[int, str]
"""Component, from 0 => name."""


def read_names(run: Path) -> Names:
    """The names kept in the run; none where there is no file. UserError for a file that cannot be read as such."""
    path = run / FILE
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UserError(f"{path}: not readable; write a line for each component, such as `1: smile`") from None
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: write a line for each component, such as `1: smile`")
    return check_names({str(number): str(name) for number, name in content.items()}, str(path))


def parse_names(given: Sequence[str]) -> dict[str, str]:
    """`NUMBER=NAME` pairs; an empty name takes the former one away."""
    pairs = [text.partition("=") for text in given]
    for text, (_, equals, _) in zip(given, pairs, strict=True):
        if not equals:
            raise UserError(f"--name {text!r}: is written NUMBER=NAME, such as 1=smile")
    return {number.strip(): name.strip() for number, _, name in pairs}


def check_names(names: Mapping[str, str], where: str) -> Names:
    """Names by component from 0; UserError names the one that is no number from 1, or too long."""
    found = {}
    for number, name in names.items():
        if not (number.isascii() and number.isdecimal() and int(number) >= 1):
            raise UserError(f"{where}: {number!r}: components are numbered from 1")
        text = " ".join(name.split())
        if len(text) > LONGEST or not text.isprintable():
            raise UserError(f"{where}: the name of component {number} has more than {LONGEST} letters, or odd ones")
        found[int(number) - 1] = text
    return found


def merge_names(run: Path, given: Sequence[str], num_components: int) -> Names:
    """The run's names with the given ones over them; UserError for a component that the run does not have."""
    names = read_names(run) | check_names(parse_names(given), "--name")
    beyond = [index + 1 for index in names if index >= num_components]
    if beyond:
        raise UserError(f"component {beyond[0]} cannot be named: the run has {num_components}")
    return {index: name for index, name in sorted(names.items()) if name}


def keep_names(run: Path, names: Names) -> None:
    """Write the names into the run, for the next report; without any there is no file."""
    if not names:
        (run / FILE).unlink(missing_ok=True)
        return
    lines = {index + 1: name for index, name in names.items()}
    write_whole(run / FILE, yaml.safe_dump(lines, allow_unicode=True).encode())
