"""Names that the user gives to components; they are stored in RUN/names.yaml, which may be edited by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from featgan.errors import UserError
from featgan.system.files import atomic_write
from featgan.system.yaml_files import read_yaml_mapping

COMPONENT_NAMES_FILE = "names.yaml"
MAX_NAME_LENGTH = 40
ComponentNames = dict[int, str]
"""Index of the component, from 0 => name."""


def read_component_names(run_dir: Path) -> ComponentNames:
    """Return the names stored in the run; empty if there is no file. Raises UserError if the file is invalid."""
    path = run_dir / COMPONENT_NAMES_FILE
    if not path.exists():
        return {}
    try:
        content = read_yaml_mapping(path)
    except UserError as error:
        raise UserError(f"{error}; write one line per component, such as `1: smile`") from None
    return validate_component_names({str(number): str(name) for number, name in content.items()}, str(path))


def parse_component_names(assignments: Sequence[str]) -> dict[str, str]:
    """Parse `NUMBER=NAME` pairs; an empty name removes the stored one. Raises UserError if there is no `=`."""
    pairs = [text.partition("=") for text in assignments]
    for text, (_, equals, _) in zip(assignments, pairs, strict=True):
        if not equals:
            raise UserError(f"--component-name {text!r}: expected NUMBER=NAME, such as 1=smile")
    return {number.strip(): name.strip() for number, _, name in pairs}


def validate_component_names(names: Mapping[str, str], context: str) -> ComponentNames:
    """Return the names by index from 0. Raises UserError for an invalid number or name; `context` is named in it."""
    names_by_index = {}
    for number, name in names.items():
        if not (number.isascii() and number.isdecimal() and int(number) >= 1):
            raise UserError(f"{context}: {number!r}: not the number of a component; components are numbered from 1")
        text = " ".join(name.split())
        if len(text) > MAX_NAME_LENGTH or not text.isprintable():
            raise UserError(
                f"{context}: the name of component {number} is not valid; "
                f"use at most {MAX_NAME_LENGTH} printable characters"
            )
        names_by_index[int(number) - 1] = text
    return names_by_index


def merge_component_names(run_dir: Path, assignments: Sequence[str], num_components: int) -> ComponentNames:
    """Return the names stored in the run, updated with `assignments`.

    Raises UserError if the run has no such component.
    """
    names = read_component_names(run_dir) | validate_component_names(
        parse_component_names(assignments), "--component-name"
    )
    out_of_range = [index + 1 for index in names if index >= num_components]
    if out_of_range:
        raise UserError(
            f"--component-name or {COMPONENT_NAMES_FILE}: the run has no component {out_of_range[0]}; "
            f"name components 1 to {num_components}"
        )
    return {index: name for index, name in sorted(names.items()) if name}


def save_component_names(run_dir: Path, names: ComponentNames) -> None:
    """Store the names in the run for the next report; without names, delete the file."""
    if not names:
        (run_dir / COMPONENT_NAMES_FILE).unlink(missing_ok=True)
        return
    names_by_number = {index + 1: name for index, name in names.items()}
    atomic_write(run_dir / COMPONENT_NAMES_FILE, yaml.safe_dump(names_by_number, allow_unicode=True).encode())
