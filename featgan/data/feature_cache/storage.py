"""The files of a feature cache: its manifest and one memory-mapped array a shard."""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from featgan.data.shards.shard_set import ShardSet, Split
from featgan.errors import UserError
from featgan.system.files import sha256_of

MANIFEST, PARTIAL = "manifest.json", "partial.json"
"""Of a complete cache, written last; and of one that is being made, written first."""

Width = Annotated[int, Field(ge=0)]
OutputKind = Literal["expression", "valence_arousal", "attributes", "factors", "other"]


class Fields(BaseModel):
    """A group of fields of the cache's manifest."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class BoxIdentity(Fields):
    """Which black box, and which of its layers."""

    spec: str
    layer: str
    sha256: str


class Origin(Fields):
    """What a cache is made of; caches of one origin hold the same numbers."""

    format: Literal["featgan-features"] = "featgan-features"
    version: Literal[1] = 1
    shards: str
    """Fingerprint of the shards."""
    blackbox: BoxIdentity
    feature_dim: Annotated[int, Field(ge=1)]
    output_dim: Width
    output_kind: OutputKind
    class_names: tuple[str, ...] = ()

    def difference(self, wanted: "Origin") -> str:
        """What this cache is of, where that is not what is wanted; empty where its numbers can be used."""
        if self.shards != wanted.shards:
            return "other shards"
        if self.blackbox.sha256 != wanted.blackbox.sha256:
            return f"another black box ({self.blackbox.spec})"
        if self.blackbox.layer != wanted.blackbox.layer:
            return f"another layer ({self.blackbox.layer})"
        same = (self.feature_dim, self.output_dim) == (wanted.feature_dim, wanted.output_dim)
        return "" if same else f"{self.feature_dim} features and {self.output_dim} outputs"


class ArrayFile(Fields):
    """Size and hash of one file of the cache."""

    bytes: Width
    sha256: str


class CacheManifest(Origin):
    """A complete cache."""

    featgan: str
    num_components: int | None
    files: dict[str, ArrayFile]


FoundOrigin = TypeVar("FoundOrigin", bound=Origin)


class ShardArrays:
    """Float arrays [n, 2, width] of one split, one file a shard, mapped into memory at first use.

    Maps do not travel to other processes by pickling: each opens its own.
    """

    def __init__(self, paths: Sequence[Path], counts: Sequence[int], width: int) -> None:
        self.paths = list(paths)
        self.counts = list(counts)
        self.width = width
        self.starts = np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)])
        self.maps: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "maps": {}}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def gather(self, rows: Sequence[int] | np.ndarray, mirrored: bool | np.ndarray) -> np.ndarray:
        """float32 [n, width] of the split's rows [n], of the mirror images where `mirrored`."""
        rows = np.asarray(rows, np.int64)
        assert not len(rows) or 0 <= rows.min() <= rows.max() < self.starts[-1], "row outside the split"
        sides = np.broadcast_to(np.asarray(mirrored, bool), rows.shape).astype(np.intp)
        found = np.empty((len(rows), self.width), np.float32)
        shard_of = np.searchsorted(self.starts, rows, side="right") - 1
        order = np.argsort(shard_of, kind="stable")
        sorted_shards = shard_of[order]
        borders = [*np.flatnonzero(np.diff(sorted_shards, prepend=-1)).tolist(), len(order)]
        for first, end in pairwise(borders):
            shard, places = int(sorted_shards[first]), order[first:end]
            found[places] = self.array(shard)[rows[places] - self.starts[shard], sides[places]]
        return found

    def array(self, shard: int) -> np.ndarray:
        if shard not in self.maps:
            self.maps[shard] = open_array(self.paths[shard], (self.counts[shard], 2, self.width))
        return self.maps[shard]


def open_array(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A memory-mapped float32 array; UserError when the file is not one of this shape."""
    try:
        # A plain array over the map: numpy's own class for maps takes longer than the copy of a row.
        array = np.asarray(np.load(path, mmap_mode="r" if min(shape) else None, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise damaged(path, "missing" if isinstance(error, FileNotFoundError) else "cut off or damaged") from error
    if array.dtype != np.float32 or array.shape != shape:
        raise damaged(path, f"holds {array.dtype} {list(array.shape)} where float32 {list(shape)} is needed")
    return array


def damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path}: {what}; run `featgan extract` again, which mends it")


def split_arrays(folder: Path, split: Split, kind: str, width: int) -> ShardArrays:
    """`kind` is features or outputs."""
    return ShardArrays([array_path(folder, name, kind) for name in split.shard_names], split.shard_counts, width)


def array_path(folder: Path, shard: str, kind: str) -> Path:
    return folder / f"{shard}.{kind}.npy"


def cache_folder(shards: ShardSet, name: str) -> Path:
    """SHARDS/features/NAME; UserError when the name is no plain folder name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise UserError(f"feature cache name {name!r}: use letters, digits, '.', '_' and '-'")
    return shards.path / "features" / name


def read_origin(path: Path, model: type[FoundOrigin]) -> FoundOrigin:
    """Read a manifest; UserError when it is damaged."""
    try:
        return model.model_validate_json(path.read_bytes())
    except ValidationError as error:
        what = error.errors(include_url=False)[0]["msg"]
        raise UserError(f"{path}: damaged ({what}); remove {path.parent} and run `featgan extract` again") from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise damaged(path, f"cannot be read ({error})") from error


def is_whole(path: Path, entry: ArrayFile) -> bool:
    """Whether a file has the size and the content that it was written with."""
    return path.is_file() and path.stat().st_size == entry.bytes and sha256_of(path) == entry.sha256


def check_file(path: Path, entry: ArrayFile) -> None:
    if not path.is_file():
        raise damaged(path, "missing")
    if path.stat().st_size != entry.bytes:
        raise damaged(path, f"{path.stat().st_size} bytes where {entry.bytes} were written")
