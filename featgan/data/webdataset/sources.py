"""The tars of a source: folders, tars, patterns with braces, lists of shards, and URLs of these, with their splits."""

import fnmatch
import math
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from braceexpand import braceexpand

from featgan.data.readers.parsing import natural_sort_key
from featgan.data.remote.fetch_errors import MISSING_FILE
from featgan.data.remote.fetching import read_small
from featgan.errors import UserError
from featgan.system.json_files import JsonError, parse_json
from featgan.system.limits import MAX_JSON_BYTES, MAX_SHARDS
from featgan.system.locations import Location, redact_text
from featgan.system.user_paths import expand_path

INFO_FILES = ("_info.json", "info.json")
"""Names of the list of shards in a folder, as written for timm."""

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "eval"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Words in the name of a tar, or names of its folder => its split."""

MAX_RETRY_SECONDS = 60.0

MAX_DIGITS = 12
"""Digits of a number in a pattern."""


@dataclass(frozen=True)
class SourceTar:
    """A tar and its split: `train`, `validation`, `test`, or empty if it is not known."""

    location: Location
    split: str


def expand_sources(sources: Sequence[str], validation: str = "") -> list[SourceTar]:
    """Return the tars of all sources, in order.

    `validation` is a pattern such as `*val*.tar`: the tars whose names match it are the validation split, and the
    others the training split. Raises UserError if a source contains no tars, or if a tar is listed twice.
    """
    tars = [tar for source in sources for text in expand_braces(source) for tar in list_tars(text)]
    if validation:
        tars = [SourceTar(tar.location, split_by_pattern(tar.location, validation)) for tar in tars]
        if not any(tar.split == "validation" for tar in tars):
            raise UserError(f"--layout-option validation={validation}: no tar has such a name")
    seen: set[str] = set()
    for tar in tars:
        if tar.location.raw in seen:
            raise UserError(f"{tar.location}: is listed twice; remove it from the sources")
        seen.add(tar.location.raw)
    if len(tars) > MAX_SHARDS:
        raise UserError(f"{len(tars):,} tars: at most {MAX_SHARDS:,} are possible; use fewer")
    return tars


def expand_braces(text: str) -> Iterator[str]:
    """Yield the texts of a pattern such as `a-{000..127}.tar`. Raises UserError for more than MAX_SHARDS."""
    if "{" not in text or file_kind(Path(text)):
        yield text
        return
    shown = redact_text(text)[:200]
    if re.search(r"\{[^{}]*\{", text):
        raise UserError(f"{shown}: braces inside braces are not supported; give several patterns")
    if math.prod(map(count_texts, re.findall(r"\{([^{}]*)\}", text))) > MAX_SHARDS:
        raise UserError(f"{shown}: names more than {MAX_SHARDS:,} tars; use a smaller range")
    try:
        yield from braceexpand(text, escape=False)  # without escapes, all braces were counted
    except ValueError:  # and braceexpand's own error
        raise UserError(f"{shown}: not a pattern; write NAME-{{000..127}}.tar") from None


def count_texts(part: str) -> float:
    """Return the number of texts for the text between two braces, by the rules of braceexpand, without creating them.

    The step of a range is ignored, so that the number may be too large.
    """
    if numbers := re.match(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?\d+)?$", part):
        if max(map(len, numbers.groups())) > MAX_DIGITS:
            return math.inf
        return abs(int(numbers[2]) - int(numbers[1])) + 1.0
    if letters := re.match(r"([A-Za-z])\.\.([A-Za-z])(?:\.\.-?\d+)?$", part):
        return abs(ord(letters[2]) - ord(letters[1])) + 1.0
    return part.count(",") + 1.0


def list_tars(text: str) -> list[SourceTar]:
    """Return the tars of a folder, a tar, or a list of shards, which may be behind a URL."""
    location = Location.parse(text)
    if not location.is_remote:
        location = Location.from_path(expand_path(text if location.scheme == "path" else location.path))
    name = location.name.lower()
    if name.endswith(".json"):
        return read_shard_list(location)
    if name.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2")):
        raise UserError(f"{location}: compressed tars cannot be read; decompress it first")
    if location.is_remote:
        if name.endswith(".tar"):
            return [SourceTar(location, split_of_name(location))]
        return read_remote_folder(location)
    path = location.path
    kind = file_kind(path)
    if kind == stat.S_IFDIR:
        return list_folder(path)
    if kind != stat.S_IFREG:
        raise UserError(
            f"{location}: no such file or folder; give a folder, tars, or a pattern such as a-{{000..127}}.tar"
            + ("; remove the quotes around *, which the shell expands" if "*" in location.name else "")
        )
    return [SourceTar(location, split_of_name(location))]


def file_kind(path: Path) -> int:
    """Return the kind of a file, such as stat.S_IFREG; 0 if there is none, also if the text is too long for a path."""
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except (OSError, ValueError):
        return 0


def read_remote_folder(folder: Location) -> list[SourceTar]:
    """Return the tars in the list of shards of a folder behind a URL, which cannot be listed itself."""
    try:
        return read_shard_list(folder.join(INFO_FILES[0]))
    except UserError as error:
        if MISSING_FILE not in str(error):
            raise
        raise UserError(
            f"{folder}: contains no {INFO_FILES[0]}; give the tars, or a pattern such as a-{{000..127}}.tar"
        ) from None


def list_folder(folder: Path) -> list[SourceTar]:
    """Return the tars of a folder: those in its list of shards, else all of them in natural order."""
    for name in INFO_FILES:
        if (folder / name).is_file():
            return read_shard_list(Location.from_path(folder / name))
    paths = sorted(folder.rglob("*.tar"), key=lambda path: natural_sort_key(path.relative_to(folder).as_posix()))
    if not paths:
        raise UserError(f"{folder}: contains no .tar files; check the folder")
    return [SourceTar(Location.from_path(path), split_of_name(Location.from_path(path))) for path in paths]


def read_shard_list(location: Location) -> list[SourceTar]:
    """Return the tars that a list of shards names: `_info.json` of timm, or the index of wids."""
    try:
        content: Any = parse_json(read_small(location, MAX_JSON_BYTES, MAX_RETRY_SECONDS))
    except JsonError as error:
        raise UserError(f"{location}: {error}") from None
    names: list[tuple[Any, str]] = []
    if isinstance(content, dict) and isinstance(content.get("splits"), dict):
        for split, entry in content["splits"].items():
            files = entry.get("filenames") if isinstance(entry, dict) else None
            names += [(name, split_of_words(str(split))) for name in (files if isinstance(files, list) else ())]
    elif isinstance(content, dict) and isinstance(content.get("shardlist"), list):
        names = [(entry.get("url") if isinstance(entry, dict) else None, "") for entry in content["shardlist"]]
    if not names or not all(isinstance(name, str) and name for name, _ in names):
        raise UserError(f"{location}: not a list of shards; give the tars, or a pattern such as a-{{000..127}}.tar")
    folder = location.parent
    tars = [(folder.resolve(str(name)), split) for name, split in names]
    return [SourceTar(tar, split or split_of_name(tar)) for tar, split in tars]


def split_of_name(location: Location) -> str:
    """Return the split that the name of a tar contains, else its folder; empty if neither does."""
    return split_of_words(location.name) or SPLIT_WORDS.get(location.parent.name.lower(), "")


def split_of_words(text: str) -> str:
    """Return the split that a text names."""
    return next((SPLIT_WORDS[word] for word in re.findall(r"[a-z]+", text.lower()) if word in SPLIT_WORDS), "")


def split_by_pattern(location: Location, pattern: str) -> str:
    """Return the split of a tar by the pattern for validation tars."""
    is_match = fnmatch.fnmatch(location.name, pattern) or fnmatch.fnmatch(location.redacted, pattern)
    return "validation" if is_match else "train"
