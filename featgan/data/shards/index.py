"""The index of a split: where each image lies in its tar and every label as an array, derived from the shards."""

import io
import json
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from featgan.errors import UserError

MAX_LABEL_BYTES = 1 << 20
"""Largest KEY.json that is read."""


@dataclass(frozen=True)
class Entry:
    """One image of a shard: its key, where its JPEG lies, and the labels of its JSON."""

    key: str
    offset: int
    size: int
    labels: Mapping[str, Any]


@dataclass(frozen=True)
class Index:
    """N images in the shards' order; A attributes, F factors."""

    keys: np.ndarray  # bytes [N]; keys are ASCII
    offset: np.ndarray  # int64 [N], of the JPEG in its tar
    size: np.ndarray  # int64 [N], bytes of the JPEG
    expression: np.ndarray  # int16 [N], -1 where unknown
    valence: np.ndarray  # float32 [N], nan where unknown
    arousal: np.ndarray  # float32 [N], nan where unknown
    attributes: np.ndarray  # int8 [N, A], 0 or 1, -1 where unknown
    factors: np.ndarray  # float32 [N, F], nan where unknown


COLUMNS = {
    "keys": ("S", 1),
    "offset": ("i8", 1),
    "size": ("i8", 1),
    "expression": ("i2", 1),
    "valence": ("f4", 1),
    "arousal": ("f4", 1),
    "attributes": ("i1", 2),
    "factors": ("f4", 2),
}
"""Kind and number of dimensions of each array, as they must be found in the file."""


def build_index(entries: Sequence[Entry], attribute_names: Sequence[str], factor_names: Sequence[str]) -> Index:
    """Labels of all entries as arrays; missing ones as -1 or nan."""
    labels = [entry.labels for entry in entries]

    def column(name: str, kind: str, missing: float) -> np.ndarray:
        return np.array([missing if row.get(name) is None else row[name] for row in labels], kind)

    def table(name: str, names: Sequence[str], kind: str, missing: float) -> np.ndarray:
        rows = [[(row.get(name) or {}).get(part, missing) for part in names] for row in labels]
        return np.array(rows, kind).reshape(len(entries), len(names))

    return Index(
        keys=np.array([entry.key.encode("ascii") for entry in entries], "S" if entries else "S1"),
        offset=np.array([entry.offset for entry in entries], np.int64),
        size=np.array([entry.size for entry in entries], np.int64),
        expression=column("expression", "i2", -1),
        valence=column("valence", "f4", np.nan),
        arousal=column("arousal", "f4", np.nan),
        attributes=table("attributes", attribute_names, "i1", -1),
        factors=table("factors", factor_names, "f4", np.nan),
    )


def index_bytes(index: Index) -> bytes:
    """The index as an uncompressed npz; equal indexes give equal bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, **{field.name: getattr(index, field.name) for field in fields(index)})
    return buffer.getvalue()


def load_index(path: Path) -> Index:
    """Read an npz written by `index_bytes`; UserError when it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            index = Index(**{name: arrays[name] for name in COLUMNS})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged index ({error}); delete it and it is rebuilt from the shards") from error
    for name, (kind, dimensions) in COLUMNS.items():
        array = getattr(index, name)
        fits = array.dtype.kind == "S" if kind == "S" else array.dtype == np.dtype(kind)
        if not fits or array.ndim != dimensions or len(array) != len(index.keys):
            raise UserError(f"{path}: damaged index ({name}); delete it and it is rebuilt from the shards")
    return index


def scan_shard(path: Path) -> Iterator[Entry]:
    """Entries of a tar in its order: KEY.jpg followed by KEY.json; UserError when it is anything else."""
    try:
        with tarfile.open(path, "r:") as tar:
            members = iter(tar)
            for image in members:
                labels = next(members, None)
                yield read_entry(path, tar, image, labels)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{path}: not a readable tar ({error}); pack the images again") from error


def read_entry(path: Path, tar: tarfile.TarFile, image: tarfile.TarInfo, labels: tarfile.TarInfo | None) -> Entry:
    """One image and its labels."""
    key, extension = image.name.partition(".")[::2]
    if extension != "jpg" or labels is None or labels.name != f"{key}.json" or labels.size > MAX_LABEL_BYTES:
        raise UserError(f"{path}: {image.name} is not followed by its {key}.json; pack the images again")
    content = tar.extractfile(labels)
    if content is None:
        raise UserError(f"{path}: {labels.name} is not a file; pack the images again")
    try:
        parsed = json.loads(content.read())
    except ValueError as error:
        raise UserError(f"{path}: {labels.name} is not valid JSON; pack the images again") from error
    if not isinstance(parsed, dict):
        raise UserError(f"{path}: {labels.name} is not a JSON object; pack the images again")
    return Entry(key, image.offset_data, image.size, parsed)
