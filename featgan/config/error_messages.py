"""Turn the first error of a pydantic validation into one line: where, what is wrong, and the nearest key that exists.

pydantic reports a list of errors, each with a location and an English message. A validator of ours raises ValueError
with a message that begins with the field (`precision: fp16 ...`) if the validator checks a section, and with a problem
if it checks one field. The functions here join location and message, find the command-line override that caused the
error, and suggest a key for an unknown one.
"""

import difflib
import re
from collections.abc import Mapping

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from featgan.config.base import list_keys
from featgan.system.locations import redact_urls

MAX_INPUT_LENGTH = 80
"""Characters of a wrong value that are quoted."""


def format_validation_error(
    error: ValidationError, model: type[BaseModel], location: str, overrides: Mapping[str, str] | None = None
) -> str:
    """Return the first error as `LOCATION: KEY: problem`.

    `location` names the file. `overrides` holds the overrides of the command line by key; if one of them caused the
    error, it is named instead of the file.
    """
    details = error.errors()[0]
    key = ".".join(str(part) for part in details["loc"])
    keys = list_keys(model)
    override = find_override(key, validator_message(details), overrides or {})
    location, key = repr(redact_urls(override)) if override else location, redact_urls(key)
    if details["type"] == "extra_forbidden":
        return f"{location}: unknown key {key!r}; {suggest_key(key, keys)}"
    return f"{location}: {describe_problem(key, details, keys)}"


def validator_message(details: ErrorDetails) -> str:
    """Return the message of one of our validators; empty for pydantic's own messages."""
    return details["msg"].removeprefix("Value error, ") if details["type"] == "value_error" else ""


def describe_problem(key: str, details: ErrorDetails, keys: list[str]) -> str:
    """Return `KEY: problem`; pydantic's own messages are followed by the wrong value."""
    message = validator_message(details)
    if not message:
        return f"{key}: {details['msg']} (got {redact_urls(repr(details['input'])):.{MAX_INPUT_LENGTH}})"
    if not key:
        return message
    is_section = any(name.startswith(f"{key}.") for name in keys)
    return f"{key}.{message}" if is_section else f"{key}: {message}"


def find_override(key: str, message: str, overrides: Mapping[str, str]) -> str | None:
    """Return the override that caused an error at `key`, or None if the file caused it.

    An override is the cause if it sets the wrong key, a section around it or a field inside it. If there is none, it
    is an override of a key that the message mentions. The message of a section's validator begins with the wrong field.
    """
    wrong_key = ".".join(filter(None, (key, message.partition(":")[0])))
    matches = [name for name in overrides if f"{wrong_key}.".startswith(f"{name}.") or name.startswith(f"{wrong_key}.")]
    if not matches:
        words = {word.strip(".") for word in re.findall(r"[\w.]+", message)}
        mentioned_keys = {f"{key}.{word}" for word in words} | {word for word in words if "." in word}
        matches = [name for name in overrides if name in mentioned_keys]
    return overrides[matches[-1]] if matches else None


def suggest_key(key: str, keys: list[str]) -> str:
    """Return `did you mean ...?` with the most likely key, or a list of the keys that are allowed in that section.

    Candidates are a key of the same name in another section, a similar name in the same section, and a similar key
    anywhere, in this order. Sections are candidates only for a key that is itself in the place of a section.
    """
    section, _, leaf = key.rpartition(".")
    section_keys = {name.rpartition(".")[2]: name for name in keys if name.rpartition(".")[0] == section}
    leaf_keys = [name for name in keys if not any(other.startswith(f"{name}.") for other in keys)]
    suggestions = [name for name in leaf_keys if name.rpartition(".")[2] == leaf]
    suggestions += [section_keys[name] for name in difflib.get_close_matches(leaf, section_keys, 1, 0.5)]
    suggestions += difflib.get_close_matches(key, leaf_keys, 1, 0.75)
    if suggestions:
        return f"did you mean {suggestions[0]!r}?"
    return f"{section or 'the top level'} has {', '.join(section_keys)}"
