"""The files of a feature cache: the manifest and one memory-mapped array per shard."""

import re
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from featgan.config.choices import Task
from featgan.data.remote.remote_folder import folder_of
from featgan.data.remote.shard_files import LocalFiles, ShardFiles
from featgan.data.row_selection import RowSelection
from featgan.data.shards.manifest import MANIFEST_FILE, Count, Sha256
from featgan.data.shards.shard_set import ShardSet
from featgan.data.shards.split import Split
from featgan.errors import UserError
from featgan.features.space import FeatureSpace
from featgan.system.array_files import ArrayError, map_array, map_open_array
from featgan.system.files import describe_read_error, sha256_of
from featgan.system.json_files import JsonError, parse_json, read_json
from featgan.system.limits import MAX_ARRAY_HEADER_BYTES, MAX_FEATURES
from featgan.system.locations import Location
from featgan.system.open_file import OpenFile
from featgan.system.resources import share_of_open_files
from featgan.system.tensor_files import TensorFileError, read_finite_tensors

PARTIAL_MANIFEST_FILE = "partial.json"
"""The manifest of an incomplete cache, written first; MANIFEST_FILE is that of a complete one, written last."""

FEATURES_FOLDER = "features"
"""The folder of the caches that are stored with the shards."""

CACHE_FORMAT: Final = "featgan-features"
"""The value of `format` in both manifests."""

FLOAT_BYTES = 4
"""Size of a float32 value in bytes."""

MAP_SHARE = 1 / 8
"""Share of the files that a process may open which the maps of one `ShardArrays` may use; each map keeps a file open.

Training uses the features and outputs of up to two data sets, and the tars.
"""


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

    format: Literal["featgan-features"] = CACHE_FORMAT
    version: Literal[1] = 1
    shards: str
    """Fingerprint of the shards."""
    blackbox: BlackBoxIdentity
    feature_dim: Annotated[int, Field(ge=1, le=MAX_FEATURES)]
    output_dim: Annotated[int, Field(ge=0, le=MAX_FEATURES)]
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

    bytes: Count
    sha256: Sha256


class CacheManifest(CacheProvenance):
    """The manifest of a complete cache."""

    featgan: str
    num_components: int | None
    files: dict[str, CacheFile]
    shards_location: str | None = None
    """The location of the shards when the cache was written, if it is not in their folder; for `featgan info`."""


AnyProvenance = TypeVar("AnyProvenance", bound=CacheProvenance)


class ShardArrays:
    """The float32 arrays [n, 2, width] of one split, one file per shard, memory-mapped on first use.

    Index 1 of the second axis is the horizontally flipped image. Memory maps are not pickled: each process opens its
    own.
    """

    def __init__(self, shard_files: ShardFiles, counts: Sequence[int], width: int) -> None:
        self.shard_files = shard_files
        self.counts = list(counts)
        self.width = width
        self.starts = np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)])
        self.maps: dict[int, tuple[np.ndarray, OpenFile | None]] = {}
        """The newest maps by shard, and the open file if it is in the cache of the node, which may remove it."""
        self.max_maps = share_of_open_files(MAP_SHARE)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "maps": {}}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def check_sizes(self) -> None:
        """Raise UserError if the header of the first file or the size of a file does not fit the manifest.

        Files behind a URL are not read.
        """
        for shard, count in enumerate(self.counts):
            value_bytes = count * 2 * self.width * FLOAT_BYTES
            location = self.shard_files.location(shard)
            try:
                num_bytes = self.shard_files.size(shard)
            except FileNotFoundError:
                raise corrupt_cache_error(location, "missing") from None
            if not value_bytes < num_bytes <= value_bytes + MAX_ARRAY_HEADER_BYTES:
                raise mismatched_cache_error(
                    location, f"{num_bytes} bytes are not {count} images with {self.width} values each"
                )
        if self.counts and not self.shard_files.items():
            self.map_shard(0)

    def gather_rows(self, rows: Sequence[int] | np.ndarray, flipped: bool | np.ndarray) -> np.ndarray:
        """Return float32 [n, width] for rows [n] of the split, of the flipped images where `flipped` is true.

        Raises UserError if a value is not finite, since every computation with it would fail later.
        """
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
            found = self.get_array(shard)[rows[positions] - self.starts[shard], flip_index[positions]]
            if not np.isfinite(found).all():
                raise corrupt_cache_error(self.shard_files.location(shard), "contains values that are not finite")
            values[positions] = found
        return values

    def get_array(self, shard: int) -> np.ndarray:
        """Return the memory-mapped array of a shard.

        If too many files are mapped, the oldest map is dropped. Maps of files that were removed from the cache of the
        node are dropped too, so that their space becomes free.
        """
        mapped = self.maps.get(shard)
        if mapped is None:
            num_excess = max(0, len(self.maps) + 1 - self.max_maps)
            for oldest in list(self.maps)[:num_excess]:
                self.maps.pop(oldest, None)
            for other, (_, file) in list(self.maps.items()):
                if file is not None and file.is_removed:
                    self.maps.pop(other, None)
            mapped = self.maps[shard] = self.map_shard(shard)
        return mapped[0]

    def retain(self, shards: Collection[int]) -> None:
        """Drop the maps of all other shards if they are in the cache of the node, so that it can remove the files."""
        if self.shard_files.items():
            for shard in set(self.maps) - set(shards):
                self.maps.pop(shard, None)

    def read_in_order(self, rows: np.ndarray | RowSelection, block: int, *, with_flips: bool) -> Iterator[np.ndarray]:
        """Yield the values of ascending rows in blocks; the maps of shards that were read are closed.

        With flips, the images and their horizontal flips alternate: float32 [2 n, width] for n rows.
        """
        for start in range(0, len(rows), block):
            chosen = np.asarray(rows[start : start + block])
            if with_flips:
                yield self.gather_rows(np.repeat(chosen, 2), np.tile([False, True], len(chosen)))
            else:
                yield self.gather_rows(chosen, False)
            for shard in [shard for shard in self.maps if self.starts[shard + 1] <= chosen[-1]]:
                self.maps.pop(shard, None)

    def map_shard(self, shard: int) -> tuple[np.ndarray, OpenFile | None]:
        """Map the array of a shard, and return its file too if it is in the cache of the node."""
        location, shape = self.shard_files.location(shard), (self.counts[shard], 2, self.width)
        try:
            file = self.shard_files.open(shard)
            array = check_array(location, map_open_array(file), shape)
        except OSError as error:
            raise corrupt_cache_error(location, describe_read_error(error)) from None
        except ArrayError as error:
            raise corrupt_cache_error(location, str(error)) from error
        return array, file if self.shard_files.items() else None


def open_array(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Open a memory-mapped float32 array. Raises UserError if the file is missing, corrupted or of another shape."""
    try:
        return check_array(path, map_array(path), shape)
    except ArrayError as error:
        raise corrupt_cache_error(path, str(error)) from error


def check_array(location: Path | str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array if it is float32 of this shape; raises UserError otherwise."""
    if array.dtype != np.float32 or array.shape != shape:
        raise mismatched_cache_error(
            location, f"contains {array.dtype} {list(array.shape)}, but float32 {list(shape)} is required"
        )
    # A plain array over the map: indexing np.memmap takes longer than copying a row.
    return np.asarray(array)


def corrupt_cache_error(path: Path | str, problem: str) -> UserError:
    """Return the error for a file of the cache that is missing or corrupted."""
    return UserError(f"{path}: {problem}; run `featgan extract` again to repair it")


def mismatched_cache_error(path: Path | str, problem: str) -> UserError:
    """Return the error for a file that does not fit the manifest, although its content is as it was written."""
    folder = str(path).rpartition("/")[0]
    return UserError(f"{path}: {problem}; remove {folder} and run `featgan extract` again")


def open_split_arrays(folder: Path, split: Split, kind: str, width: int) -> ShardArrays:
    """Open the arrays of a split; `kind` is "features" or "outputs"."""
    paths = [array_path(folder, name, kind) for name in split.shard_names]
    return ShardArrays(LocalFiles(paths), split.shard_counts, width)


def array_path(folder: Path, shard: str, kind: str) -> Path:
    """Return the path of the array of one shard; `kind` is "features" or "outputs"."""
    return folder / f"{shard}.{kind}.npy"


def cache_folder(shards: ShardSet, cache: str) -> Path:
    """Return the folder of a feature cache for writing; see `cache_location`.

    Raises UserError also if it is behind a URL.
    """
    location = cache_location(shards, cache)
    if location.is_remote:
        raise UserError(f"{location}: the features cannot be written to a URL; choose a local folder with --out")
    return location.path


def cache_location(shards: ShardSet, cache: str) -> Location:
    """Return the location of a feature cache: SHARDS/features/NAME for a name, or a folder or URL that contains "/".

    Raises UserError for a name that is not a simple folder name, and for a URL that is not allowed.
    """
    if is_outside_shards(cache):
        return folder_of(Location.parse(cache), MANIFEST_FILE)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", cache):
        raise UserError(f"feature cache name {cache!r}: use letters, digits, '.', '_' and '-'")
    return shards.location.join(FEATURES_FOLDER).join(cache)


def is_outside_shards(cache: str) -> bool:
    """Whether a feature cache is given by its folder or URL, and not by its name in the shards."""
    return "/" in cache


def describe_extraction(shards: ShardSet, cache: str) -> str:
    """Return the command that writes a feature cache, for messages."""
    option = "--out" if is_outside_shards(cache) else "--cache-name"
    name = Location.parse(cache).redacted if is_outside_shards(cache) else cache
    return f"featgan extract --shards {shards.location} --blackbox SPEC {option} {name}"


def is_cache_manifest(path: Path) -> bool:
    """Return whether a file is the manifest of a feature cache, maybe a damaged one, and not of something else."""
    try:
        value = read_json(path, remedy="")
    except UserError:
        return True
    return isinstance(value, dict) and value.get("format") == CACHE_FORMAT


def read_cache_manifest(path: Path, model: type[AnyProvenance]) -> AnyProvenance:
    """Read a manifest. Raises UserError if it is corrupted."""
    remedy = f"remove {path.parent} and run `featgan extract` again"
    value = read_json(path, remedy=remedy)
    if isinstance(value, dict) and value.get("format") != CACHE_FORMAT:
        raise UserError(f"{path}: not the manifest of a feature cache; name another folder")
    return check_cache_manifest(value, model, path, remedy)


def parse_cache_manifest(content: bytes, model: type[AnyProvenance], location: object) -> AnyProvenance:
    """Parse a manifest that was downloaded from `location`. Raises UserError if it is corrupted."""
    remedy = "run `featgan extract` again"
    try:
        return check_cache_manifest(parse_json(content), model, location, remedy)
    except JsonError as error:
        raise UserError(f"{location}: {error}; {remedy}") from None


def check_cache_manifest(value: Any, model: type[AnyProvenance], location: object, remedy: str) -> AnyProvenance:
    """Return the manifest that a JSON value describes. Raises UserError if it is corrupted."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first_error = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first_error["loc"]) or "the file"
        raise UserError(f"{location}: corrupted ({field}: {first_error['msg']}); {remedy}") from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Load a safetensors file. Raises UserError if it cannot be read."""
    try:
        return read_finite_tensors(path)
    except TensorFileError as error:
        raise corrupt_cache_error(path, f"cannot be read ({error})") from error


def load_space(path: Path, feature_dim: int) -> FeatureSpace:
    """Load the feature space of a cache. Raises UserError if it is corrupted or has another number of features."""
    try:
        space = FeatureSpace.from_tensors(load_tensors(path))
    except ValueError as error:
        raise error if isinstance(error, UserError) else mismatched_cache_error(path, str(error)) from error
    if space.feature_dim != feature_dim:
        raise mismatched_cache_error(path, f"{space.feature_dim} features, but the manifest has {feature_dim}")
    return space


def is_intact(path: Path, entry: CacheFile) -> bool:
    """Return whether a file has the size and the sha256 in the manifest."""
    return path.is_file() and path.stat().st_size == entry.bytes and sha256_of(path) == entry.sha256


def check_file_sizes(folder: Path, manifest: CacheManifest) -> None:
    """Raise UserError if a file is missing or does not have the size in the manifest."""
    for file, entry in manifest.files.items():
        path = folder / Path(file).name
        if not path.is_file():
            raise corrupt_cache_error(path, "missing")
        if path.stat().st_size != entry.bytes:
            raise corrupt_cache_error(path, f"{path.stat().st_size} bytes, but {entry.bytes} were written")
