"""Load configurations: defaults, then a YAML file, then `section.key=value` overrides; every error is one line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from featgan.config.base import resumable_keys
from featgan.config.error_messages import format_validation_error
from featgan.config.preset_folders import find_preset_folders
from featgan.config.renamed_keys import find_renamed
from featgan.config.schema import Config
from featgan.errors import UserError
from featgan.system.locations import redact_urls
from featgan.system.user_paths import expand_path
from featgan.system.yaml_files import YamlError, parse_yaml, read_yaml_mapping


def find_presets() -> dict[str, Path]:
    """Return the presets by name: those of the installed package and of the `configs` folder of a checkout."""
    return {path.stem: path for folder in find_preset_folders() for path in sorted(folder.glob("*.yaml"))}


def find_config(name: str) -> Path:
    """Return the path of a file, or of the preset with this name. Raises UserError if there is neither."""
    path = expand_path(name)
    if path.exists() and not path.is_dir():
        return path
    preset_paths = find_presets()
    preset_name = path.stem if path.suffix in (".yaml", ".yml") and path.parent.name in ("configs", "") else name
    if preset_name in preset_paths:
        return preset_paths[preset_name]
    raise UserError(
        f"{name}: no such file, and no preset of that name; the presets are {', '.join(sorted(preset_paths))}"
    )


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """Read a preset or a YAML file, apply `section.key=value` overrides and validate the result.

    Raises UserError for a missing file, invalid YAML, an unknown or renamed key, or a value that is not allowed.
    """
    path = find_config(name)
    override_by_key = {override.partition("=")[0]: override for override in overrides}
    return parse_config(apply_overrides(read_yaml_mapping(path), overrides), str(path), override_by_key)


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set each override `a.b=c` in the tree and return the tree; values are parsed as YAML."""
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"{redact_urls(override)!r}: not an override; write section.key=value")
        *parents, leaf = key.split(".")
        section = tree
        for parent in parents:
            if not isinstance(section.get(parent), dict):
                section[parent] = {}
            section = section[parent]
        try:
            section[leaf] = parse_yaml(text) if text else None
        except YamlError as error:
            raise UserError(f"{redact_urls(override)!r}: the value is {error}; put text in quotes") from None
    return tree


def parse_config(tree: Mapping[str, Any], location: str, overrides: Mapping[str, str] | None = None) -> Config:
    """Validate the tree and return it as a Config.

    `location` names the file in error messages. `overrides` holds the overrides of the command line by key.
    Raises UserError with the first error in one line.
    """
    if renamed := find_renamed(tree):
        key, message = renamed
        matches = [text for name, text in (overrides or {}).items() if key == name or key.startswith(f"{name}.")]
        raise UserError(f"{repr(redact_urls(matches[-1])) if matches else location}: {message}")
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(format_validation_error(error, Config, location, overrides)) from None


def to_yaml(config: Config) -> str:
    """Return the resolved configuration as YAML, with every field written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=120)


def config_diff(old: Config, new: Config) -> list[str]:
    """Return the keys with different values as `key: old -> new`, except those that may change when a run resumes."""
    old_values, new_values = flatten_mapping(old.model_dump(mode="json")), flatten_mapping(new.model_dump(mode="json"))
    resumable = resumable_keys(Config)
    allowed = {True, "without_lr_decay"} if not old.optimizer.lr_decay_steps else {True}
    return [
        f"{key}: {old_values.get(key)} -> {new_values.get(key)}"
        for key in old_values | new_values
        if old_values.get(key) != new_values.get(key) and resumable.get(key) not in allowed
    ]


def flatten_mapping(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one mapping, with keys joined by dots."""
    flattened: dict[str, Any] = {}
    for key, value in tree.items():
        flattened |= flatten_mapping(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flattened
