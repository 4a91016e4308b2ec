"""The configuration reference, made from the models: `python -m featgan.config.docs > docs/configuration.md`."""

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from featgan.config.base import Section
from featgan.config.loading import presets, section_of
from featgan.config.schema import Config

HEADER = """# Configuration

Every field of a run, as it is written in a YAML file (nested by the dots) or on the command line (`generator.dim=32`).
Precedence: these defaults, then the file, then the command line. Unknown keys are refused, and so are values outside
what is allowed. `featgan train CONFIG --dry-run` prints the resolved configuration. Presets: {presets}.

This page is generated: `python -m featgan.config.docs > docs/configuration.md`.
"""


def build_reference() -> str:
    """The whole page as Markdown."""
    names = ", ".join(f"`{name}`" for name in sorted(presets()))
    return "\n".join([HEADER.format(presets=names), *section_lines(Config, "")]) + "\n"


def section_lines(section: type[Section], prefix: str) -> list[str]:
    """A section's table, then those of the sections in it."""
    title = f"## `{prefix.rstrip('.')}`" if prefix else "## A run"
    lines = [
        title,
        "",
        (section.__doc__ or "").strip(),
        "",
        "| key | allowed | default | meaning |",
        "|---|---|---|---|",
    ]
    inner: list[str] = []
    for name, field in section.model_fields.items():
        key = prefix + name
        nested = section_of(field.annotation)
        if nested is None:
            lines.append(
                row(key, describe_type(field.annotation, field.metadata), show(field.default), field.description)
            )
        elif name == "second_dataset":
            lines.append(row(key, "as `dataset`, or null", "null", field.description))
        else:
            inner += section_lines(nested, f"{key}.")
    return [*lines, "", *inner]


def row(key: str, allowed: str, default: str, meaning: str | None) -> str:
    text = " ".join((meaning or "").split()).replace("|", "\\|")
    return f"| `{key}` | {allowed} | `{default}` | {text} |"


def describe_type(annotation: Any, metadata: list[Any]) -> str:
    """A type in a few words, with its bounds."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return describe_type(get_args(annotation)[0], list(get_args(annotation)[1:]))
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if origin in (Union, types.UnionType):
        return " or ".join(describe_type(option, metadata) for option in get_args(annotation))
    if origin is tuple:
        return "list"
    name = {"int": "whole number", "float": "number", "bool": "true, false", "Path": "path", "NoneType": "null"}
    words = name.get(annotation.__name__, annotation.__name__)
    return " ".join([words, *bounds(metadata)])


def bounds(metadata: list[Any]) -> list[str]:
    """`>= 1` and the like."""
    found = []
    for sign, attribute in ((">=", "ge"), (">", "gt"), ("<=", "le"), ("<", "lt")):
        for entry in metadata:
            value = getattr(entry, attribute, None)
            if value is not None:
                found.append(f"{sign} {value}")
    return found


def show(value: Any) -> str:
    return (
        str(list(value)) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else str(value)
    )


if __name__ == "__main__":
    print(build_reference(), end="")
