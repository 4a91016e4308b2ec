"""Parse a SPEC: the kind of black box, its location, and the options after the question mark.

A SPEC such as `model.onnx?image_size=64&range=0,255` is a complete description. The features of a cache can be computed
again from the SPEC and the layer alone.
"""

import difflib
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from featgan.config.trusted_callables import CALLABLE_PATTERN
from featgan.errors import UserError
from featgan.system.user_paths import expand_path
from featgan.system.zip_files import list_members

SPEC_FORMS = (
    "a folder written by `featgan blackbox fit`, torchvision:NAME[:weights], timm:NAME[:weights], "
    "a TorchScript file (.pt, .ts), an ONNX file (.onnx) or package.module:callable"
)
KIND_BY_SUFFIX = {".pt": "torchscript", ".ts": "torchscript", ".torchscript": "torchscript", ".onnx": "onnx"}
WEIGHT_SUFFIXES = (".pth", ".safetensors", ".bin", ".ckpt", ".h5", ".pkl")
PREPROCESSING_OPTIONS = (
    "image_size", "mean", "std", "range", "layout", "channels", "interpolation", "resize_size"
)  # fmt: skip
OUTPUT_OPTIONS = ("task", "classes", "output")

MAX_LISTED_NAMES = 12
"""Maximum number of names that a message lists."""


@dataclass(frozen=True)
class BlackBoxSpec:
    """A parsed SPEC; `location` is a path, the name of a network, or `package.module:callable`."""

    kind: str
    """fitted, torchvision, timm, torchscript, onnx or callable."""
    location: str
    weights: Path | None = None
    options: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """The SPEC with absolute paths, so that it is valid in any working directory."""
        prefix = f"{self.kind}:" if self.kind in ("torchvision", "timm") else ""
        weights = f":{self.weights}" if self.weights else ""
        options = f"?{urlencode(self.options, safe=',:/', errors='surrogateescape')}" if self.options else ""
        return f"{prefix}{self.location}{weights}{options}"

    @property
    def name(self) -> str:
        """The SPEC without its options, for messages."""
        return str(BlackBoxSpec(self.kind, self.location, self.weights))

    @property
    def preprocessing(self) -> dict[str, str]:
        """The options that concern the preprocessing."""
        return {name: value for name, value in self.options.items() if name in PREPROCESSING_OPTIONS}


def parse_spec(text: str, **overrides: Any) -> BlackBoxSpec:
    """Parse a SPEC; `overrides` are further options that take precedence over those in the text.

    Raises UserError if an option is unknown or the text is not a SPEC.
    """
    location, _, query = text.partition("?")
    options = parse_options(text, query) | {
        name: format_option(value) for name, value in overrides.items() if value is not None
    }
    for name in options:
        if name not in PREPROCESSING_OPTIONS + OUTPUT_OPTIONS:
            raise UserError(
                f"{text}: unknown option {name!r}; {suggest_names(name, PREPROCESSING_OPTIONS + OUTPUT_OPTIONS)}"
            )
    kind, _, name_and_weights = location.partition(":")
    if kind in ("torchvision", "timm"):
        name, _, weights = name_and_weights.partition(":")
        if not name:
            raise UserError(f"{text}: the network's name is missing; write {kind}:NAME, such as {kind}:resnet50")
        return BlackBoxSpec(kind, name, Path(os.path.abspath(expand_path(weights))) if weights else None, options)
    return parse_location(location, options)


def parse_location(location: str, options: dict[str, str]) -> BlackBoxSpec:
    """Parse the part of a SPEC before its options: a path or `package.module:callable`."""
    path = Path(os.path.abspath(expand_path(location)))
    if location and path.is_dir():
        return BlackBoxSpec("fitted", str(path), None, options)
    if path.suffix in KIND_BY_SUFFIX:
        if not path.is_file():
            raise UserError(f"{location}: no such file; SPEC must be {SPEC_FORMS}")
        if KIND_BY_SUFFIX[path.suffix] == "torchscript" and zipfile.is_zipfile(path) and not is_torchscript_file(path):
            raise UserError(
                f"{location}: not a TorchScript file, but weights or a pickled network; for weights, "
                f"use torchvision:NAME:{location} or timm:NAME:{location}"
            )
        return BlackBoxSpec(KIND_BY_SUFFIX[path.suffix], str(path), None, options)
    if path.suffix in WEIGHT_SUFFIXES and path.is_file() and is_torchscript_file(path):
        return BlackBoxSpec("torchscript", str(path), None, options)
    if path.suffix in WEIGHT_SUFFIXES:
        raise UserError(
            f"{location}: weights alone are not a network; use torchvision:NAME:{location} or timm:NAME:{location}"
        )
    if CALLABLE_PATTERN.fullmatch(location):
        return BlackBoxSpec("callable", location, None, options)
    problem = "neither a folder nor a file of a known kind" if location and path.exists() else "no such folder or file"
    raise UserError(f"{location or 'empty SPEC'}: {problem}; SPEC must be {SPEC_FORMS}")


def is_torchscript_file(path: Path) -> bool:
    """Whether a file is an archive with the constants of a TorchScript file; `torch.save` does not write them."""
    return any(name.endswith("/constants.pkl") for name in list_members(path))


def parse_options(text: str, query: str) -> dict[str, str]:
    """Parse the options after the question mark of a SPEC."""
    try:
        # A path in an option can have bytes that are not UTF-8.
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="surrogateescape") if query else ()
        return dict(pairs)
    except ValueError as error:
        raise UserError(f"{text}: write options as ?key=value&key=value") from error


def format_option(value: Any) -> str:
    """Format an option's value as it is written in a SPEC."""
    if isinstance(value, str | int | float):
        return str(value)
    return ",".join(str(item) for item in value)


def suggest_names(name: str, known_names: Iterable[str]) -> str:
    """Return a suggestion for a misspelled name, for the end of a message."""
    known_names = list(known_names)
    matches = difflib.get_close_matches(name, known_names, n=3, cutoff=0.5)
    if matches:
        return f"did you mean {' or '.join(matches)}?"
    if len(known_names) <= MAX_LISTED_NAMES:
        return f"known names: {', '.join(known_names)}"
    closest_names = difflib.get_close_matches(name, known_names, n=3, cutoff=0)
    return f"the closest of {len(known_names):,} names: {', '.join(closest_names)}"
