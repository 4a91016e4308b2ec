"""What a SPEC says: the kind of black box, where it is, and the options behind its question mark.

`model.onnx?image_size=64&range=0,255` is a whole description: the features of a cache can be computed again from the
SPEC and the layer alone.
"""

import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from featgan.errors import UserError

FORMS = (
    "a fitted box's folder, torchvision:NAME[:weights], timm:NAME[:weights], a TorchScript file (.pt, .ts), "
    "an ONNX file (.onnx) or package.module:callable"
)
SUFFIXES = {".pt": "torchscript", ".ts": "torchscript", ".torchscript": "torchscript", ".onnx": "onnx"}
WEIGHT_SUFFIXES = (".pth", ".safetensors", ".bin", ".ckpt", ".h5", ".pkl")
PREPROCESSING_OPTIONS = ("image_size", "mean", "std", "range", "layout", "channels")
OUTPUT_OPTIONS = ("output_kind", "classes")

MOST_LISTED = 12
"""Names that a message shows in full."""


@dataclass(frozen=True)
class Spec:
    """A black box as the user names it; `where` is a path, a network's name or `package.module:callable`."""

    kind: str
    """box, torchvision, timm, torchscript, onnx or callable."""
    where: str
    weights: Path | None = None
    options: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """The same box from any folder: paths are absolute."""
        prefix = f"{self.kind}:" if self.kind in ("torchvision", "timm") else ""
        weights = f":{self.weights}" if self.weights else ""
        options = f"?{urlencode(self.options, safe=',:/')}" if self.options else ""
        return f"{prefix}{self.where}{weights}{options}"

    @property
    def name(self) -> str:
        """Without the options, for messages."""
        return str(Spec(self.kind, self.where, self.weights))

    @property
    def preprocessing(self) -> dict[str, str]:
        return {name: value for name, value in self.options.items() if name in PREPROCESSING_OPTIONS}


def parse_spec(text: str, **more: Any) -> Spec:
    """Read a SPEC; `more` are options too, and go before those in the text.

    UserError: an unknown option, or nothing that a SPEC can be.
    """
    place, _, query = text.partition("?")
    options = read_options(text, query) | {name: written(value) for name, value in more.items() if value is not None}
    for name in options:
        if name not in PREPROCESSING_OPTIONS + OUTPUT_OPTIONS:
            raise UserError(f"{text}: unknown option {name!r}; {nearest(name, PREPROCESSING_OPTIONS + OUTPUT_OPTIONS)}")
    kind, _, rest = place.partition(":")
    if kind in ("torchvision", "timm"):
        name, _, weights = rest.partition(":")
        if not name:
            raise UserError(f"{text}: the network's name is missing; write {kind}:NAME, such as {kind}:resnet50")
        return Spec(kind, name, Path(os.path.abspath(weights)) if weights else None, options)
    return parse_place(place, options)


def parse_place(place: str, options: dict[str, str]) -> Spec:
    """A path or `package.module:callable`."""
    path = Path(os.path.abspath(place))
    if place and path.is_dir():
        return Spec("box", str(path), None, options)
    if path.suffix in SUFFIXES:
        if not path.is_file():
            raise UserError(f"{place}: no such file; a black box is {FORMS}")
        return Spec(SUFFIXES[path.suffix], str(path), None, options)
    if path.suffix in WEIGHT_SUFFIXES:
        raise UserError(f"{place}: weights alone are no network; use torchvision:NAME:{place} or timm:NAME:{place}")
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", place):
        return Spec("callable", place, None, options)
    what = "neither a folder nor a file of a known kind" if place and path.exists() else "no such folder or file"
    raise UserError(f"{place or 'empty SPEC'}: {what}; a black box is {FORMS}")


def read_options(text: str, query: str) -> dict[str, str]:
    try:
        return dict(parse_qsl(query, keep_blank_values=True, strict_parsing=True)) if query else {}
    except ValueError as error:
        raise UserError(f"{text}: write options as ?key=value&key=value") from error


def written(value: Any) -> str:
    """An option's value as it stands in a SPEC."""
    if isinstance(value, str | int | float):
        return str(value)
    return ",".join(str(part) for part in value)


def nearest(name: str, known: Iterable[str]) -> str:
    """What was probably meant, for the end of a message."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    if len(known) <= MOST_LISTED:
        return f"known are {', '.join(known)}"
    return f"the nearest of {len(known):,} are {', '.join(difflib.get_close_matches(name, known, n=3, cutoff=0))}"
