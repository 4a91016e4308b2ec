"""Reading configurations: defaults < YAML < `section.key=value` on the command line, every mistake in one line."""

import difflib
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from featgan.config.base import Section
from featgan.config.schema import Config
from featgan.errors import UserError

OPERATIONAL = ("run", "training.num_workers", "training.report_every", "training.preview_every", "training.save_every",
               "training.keep_checkpoints", "distribution.strategy", "distribution.zero_stage",
               "distribution.accumulation", "distribution.recompute", "distribution.hang_timeout", "evaluation.every",
               "evaluation.suite", "evaluation.best", "evaluation.best_suite", "evaluation.blackboxes",
               "evaluation.probe", "evaluation.most_waiting")  # fmt: skip
"""Fields that may differ when a run is resumed: they do not change what is computed, but for rounding."""


def presets() -> dict[str, Path]:
    """The presets by bare name: those of the package, and of a `configs` folder in a checkout."""
    folders = [Path(str(resources.files("featgan"))) / "configs", Path(__file__).parent.parent.parent / "configs"]
    return {path.stem: path for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.yaml"))}


def locate(name: str) -> Path:
    """A preset by bare name, or a file; UserError when it is neither."""
    path = Path(name)
    if path.is_file():
        return path
    known = presets()
    bare = path.stem if path.suffix in (".yaml", ".yml") and path.parent.name in ("configs", "") else name
    if bare in known:
        return known[bare]
    raise UserError(f"{name}: no such file, and no preset of that name; the presets are {', '.join(sorted(known))}")


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """Read a preset or file, apply `section.key=value` overrides, validate.

    Raises UserError in one line for a missing file, a YAML mistake, an unknown key or a value that is not allowed.
    """
    path = locate(name)
    given = {override.partition("=")[0]: override for override in overrides}
    return validate(merge(read_yaml(path), overrides), str(path), given)


def read_yaml(path: Path, most_bytes: int = 1 << 20) -> dict[str, Any]:
    """A YAML mapping of bounded size, without aliases (a few lines of them can expand to gigabytes)."""
    if path.stat().st_size > most_bytes:
        raise UserError(f"{path}: larger than {most_bytes} bytes; this is no configuration")
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise UserError(f"{path}: YAML aliases (*name) are not allowed; write the values out")
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or 'cannot be read'}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: must be a mapping of sections")
    return loaded


def merge(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The tree with each `a.b=c` set; values are read as YAML."""
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"{override!r}: an override is written section.key=value")
        *parents, leaf = key.split(".")
        branch = tree
        for parent in parents:
            if not isinstance(branch.get(parent), dict):
                branch[parent] = {}
            branch = branch[parent]
        try:
            branch[leaf] = yaml.safe_load(text) if text else None
        except (yaml.YAMLError, ValueError):
            raise UserError(f"{override!r}: the value is not valid YAML; put a text in quotes") from None
    return tree


def validate(tree: Mapping[str, Any], where: str, overrides: Mapping[str, str] | None = None) -> Config:
    """The tree as a Config; the first mistake becomes one line, with the nearest key that exists.

    `where` names the file, `overrides` what was set on the command line, by key.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        cause = find_cause(key, message if first["type"] == "value_error" else "", overrides or {})
        where = repr(cause) if cause else where
        if first["type"] == "extra_forbidden":
            raise UserError(f"{where}: unknown key {key!r}; {nearest(key)}") from None
        shown = f"{key}: {message} (got {first['input']!r:.80})" if key and first["type"] != "value_error" else message
        prefix = f"{key}." if key and first["type"] == "value_error" else ""
        raise UserError(f"{where}: {prefix}{shown}") from None


def find_cause(key: str, message: str, overrides: Mapping[str, str]) -> str | None:
    """The override that a mistake comes from, None for the file's own.

    It set the wrong key, a section around it or a field inside it, or else a field that the message names. A message
    of a section's own check begins with the field that is wrong.
    """
    wrong = ".".join(filter(None, (key, message.partition(":")[0])))
    found = [name for name in overrides if f"{wrong}.".startswith(f"{name}.") or name.startswith(f"{wrong}.")]
    if not found:
        words = {word.strip(".") for word in re.findall(r"[\w.]+", message)}
        named = {f"{key}.{word}" for word in words} | {word for word in words if "." in word}
        found = [name for name in overrides if name in named]
    return overrides[found[-1]] if found else None


def nearest(key: str) -> str:
    """The key that was meant (of this name elsewhere, or alike), or those that can be written in its place.

    A section is meant only where one could be written.
    """
    section, _, leaf = key.rpartition(".")
    known = field_names()
    here = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == section}
    leaves = [name for name in known if not any(other.startswith(f"{name}.") for other in known)]
    meant = [name for name in leaves if name.rpartition(".")[2] == leaf]
    meant += [here[name] for name in difflib.get_close_matches(leaf, here, 1, 0.5)]
    meant += difflib.get_close_matches(key, leaves, 1, 0.75)
    return f"did you mean {meant[0]!r}?" if meant else f"{section or 'the top level'} has {', '.join(here)}"


def field_names(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Every key as it is written in an override."""
    names: list[str] = []
    for name, field in model.model_fields.items():
        names.append(prefix + name)
        section = section_of(field.annotation)
        if section:
            names += field_names(section, f"{prefix}{name}.")
    return names


def section_of(annotation: Any) -> type[Section] | None:
    """The Section a field holds, also inside `Section | None`."""
    for option in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(option, type) and issubclass(option, Section):
            return option
    return None


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML, every field written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=120)


def differences(old: Config, new: Config) -> list[str]:
    """Keys whose values differ in a way that changes what is computed, as `key: old -> new`.

    A training may be made longer, or end sooner, unless its rates decay towards its end.
    """
    before, after = flatten(old.model_dump(mode="json")), flatten(new.model_dump(mode="json"))
    keys = [key for key in before | after if before.get(key) != after.get(key) and key not in OPERATIONAL]
    if not old.optimizer.decay_steps:
        keys = [key for key in keys if key != "training.steps"]
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
