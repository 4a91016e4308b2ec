"""The files of a feature cache: the manifest and one memory-mapped array per shard."""

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

from featgan.config.choices import Task
from featgan.data.shards.shard_set import ShardSet, Split
from featgan.errors import UserError
from featgan.system.files import sha256_of

PARTIAL_MANIFEST_FILE = "partial.json"
"""The manifest of an incomplete cache, written first; MANIFEST_FILE is that of a complete one, written last."""

NonNegativeInt = Annotated[int, Field(ge=0)]


class CacheManifestModel(BaseModel):
    """Base of the parts of a cache manifest; unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class BlackBoxIdentity(CacheManifestModel):
    """A black box and one of its layers."""

    spec: str
    layer: str
    sha256: str


class CacheProvenance(CacheManifestModel):
    """The origin of a cache: caches with equal provenance contain equal values."""

    format: Literal["featgan-features"] = "featgan-features"
    version: Literal[1] = 1
    shards: str
    """Fingerprint of the shards."""
    blackbox: BlackBoxIdentity
    feature_dim: Annotated[int, Field(ge=1)]
    output_dim: NonNegativeInt
    task: Task
    class_names: tuple[str, ...] = ()

    def describe_difference(self, expected: "CacheProvenance") -> str:
        """Return the origin of this cache where it differs from `expected`, or an empty string if it does not."""
        if self.shards != expected.shards:
            return "different shards"
        if self.blackbox.sha256 != expected.blackbox.sha256:
            return f"a different black box ({self.blackbox.spec})"
        if self.blackbox.layer != expected.blackbox.layer:
            return f"a different layer ({self.blackbox.layer})"
        same_dims = (self.feature_dim, self.output_dim) == (expected.feature_dim, expected.output_dim)
        return "" if same_dims else f"{self.feature_dim} features and {self.output_dim} outputs"


class CacheFile(CacheManifestModel):
    """Size and sha256 of one file of the cache."""

    bytes: NonNegativeInt
    sha256: str


class CacheManifest(CacheProvenance):
    """The manifest of a complete cache."""

    featgan: str
    num_components: int | None
    files: dict[str, CacheFile]


AnyProvenance = TypeVar("AnyProvenance", bound=CacheProvenance)


class ShardArrays:
    """The float32 arrays [n, 2, width] of one split, one file per shard, memory-mapped on first use.

    Index 1 of the second axis is the horizontally flipped image. Memory maps are not pickled: each process opens its
    own.
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

    def gather_rows(self, rows: Sequence[int] | np.ndarray, flipped: bool | np.ndarray) -> np.ndarray:
        """Return float32 [n, width] for rows [n] of the split, of the flipped images where `flipped` is true."""
        rows = np.asarray(rows, np.int64)
        assert not len(rows) or 0 <= rows.min() <= rows.max() < self.starts[-1], "row outside the split"
        flip_index = np.broadcast_to(np.asarray(flipped, bool), rows.shape).astype(np.intp)
        values = np.empty((len(rows), self.width), np.float32)
        shard_of = np.searchsorted(self.starts, rows, side="right") - 1
        order = np.argsort(shard_of, kind="stable")
        sorted_shards = shard_of[order]
        borders = [*np.flatnonzero(np.diff(sorted_shards, prepend=-1)).tolist(), len(order)]
        for first, end in pairwise(borders):
            shard, positions = int(sorted_shards[first]), order[first:end]
            values[positions] = self.get_array(shard)[rows[positions] - self.starts[shard], flip_index[positions]]
        return values

    def get_array(self, shard: int) -> np.ndarray:
        """Return the memory-mapped array of a shard."""
        if shard not in self.maps:
            self.maps[shard] = open_array(self.paths[shard], (self.counts[shard], 2, self.width))
        return self.maps[shard]


def open_array(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Open a memory-mapped float32 array. Raises UserError if the file is missing, corrupted or of another shape."""
    try:
        # A plain array over the map: indexing np.memmap takes longer than copying a row.
        array = np.asarray(np.load(path, mmap_mode="r" if min(shape) else None, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise corrupt_cache_error(
            path, "missing" if isinstance(error, FileNotFoundError) else "truncated or corrupted"
        ) from error
    if array.dtype != np.float32 or array.shape != shape:
        raise corrupt_cache_error(
            path, f"contains {array.dtype} {list(array.shape)}, but float32 {list(shape)} is required"
        )
    return array


def corrupt_cache_error(path: Path, problem: str) -> UserError:
    """Return the error for a file of the cache that is missing or corrupted."""
    return UserError(f"{path}: {problem}; run `featgan extract` again to repair it")


def open_split_arrays(folder: Path, split: Split, kind: str, width: int) -> ShardArrays:
    """Open the arrays of a split; `kind` is "features" or "outputs"."""
    return ShardArrays([array_path(folder, name, kind) for name in split.shard_names], split.shard_counts, width)


def array_path(folder: Path, shard: str, kind: str) -> Path:
    """Return the path of the array of one shard; `kind` is "features" or "outputs"."""
    return folder / f"{shard}.{kind}.npy"


def cache_folder(shards: ShardSet, name: str) -> Path:
    """Return SHARDS/features/NAME. Raises UserError if the name is not a simple folder name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise UserError(f"feature cache name {name!r}: use letters, digits, '.', '_' and '-'")
    return shards.path / "features" / name


def read_cache_manifest(path: Path, model: type[AnyProvenance]) -> AnyProvenance:
    """Read a manifest. Raises UserError if it is corrupted."""
    try:
        return model.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]["msg"]
        raise UserError(
            f"{path}: corrupted ({problem}); remove {path.parent} and run `featgan extract` again"
        ) from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Load a safetensors file. Raises UserError if it cannot be read."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise corrupt_cache_error(path, f"cannot be read ({error})") from error


def is_intact(path: Path, entry: CacheFile) -> bool:
    """Return whether a file has the size and the sha256 in the manifest."""
    return path.is_file() and path.stat().st_size == entry.bytes and sha256_of(path) == entry.sha256


def check_file_size(path: Path, entry: CacheFile) -> None:
    """Raise UserError if a file is missing or does not have the size in the manifest."""
    if not path.is_file():
        raise corrupt_cache_error(path, "missing")
    if path.stat().st_size != entry.bytes:
        raise corrupt_cache_error(path, f"{path.stat().st_size} bytes, but {entry.bytes} were written")
