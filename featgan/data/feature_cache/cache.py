"""The feature cache: features and outputs of a black box for every image of a shard set and its horizontal flip."""

import io
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from featgan import __version__
from featgan.data.feature_cache.space_fitting import SpaceFitting
from featgan.data.feature_cache.storage import (
    FEATURES_FOLDER,
    PARTIAL_MANIFEST_FILE,
    BlackBoxIdentity,
    CacheFile,
    CacheManifest,
    CacheProvenance,
    ShardArrays,
    array_path,
    cache_folder,
    cache_location,
    check_file_sizes,
    corrupt_cache_error,
    describe_extraction,
    is_cache_manifest,
    is_intact,
    is_outside_shards,
    load_space,
    load_tensors,
    mismatched_cache_error,
    open_array,
    open_split_arrays,
    parse_cache_manifest,
    read_cache_manifest,
)
from featgan.data.feature_cache.summary import is_valid_summary, summarize_cache
from featgan.data.remote.remote_folder import RemoteFolder
from featgan.data.shards.manifest import MANIFEST_FILE
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from featgan.features.space import FeatureSpace
from featgan.system.files import atomic_write, sha256_of, user_friendly_write_errors
from featgan.system.locations import Location
from featgan.system.verified_hashes import first_modified_file

SPACE_FILE, HEAD_FILE, SUMMARY_FILE = "space.safetensors", "head.safetensors", "summary.safetensors"
COPIED_FILES = (SPACE_FILE, HEAD_FILE, SUMMARY_FILE)
"""Files that are copied from a cache behind a URL when it is opened."""

DISK_FULL_REMEDY = "free some space and run the command again: it resumes where it stopped"


class BlackBoxInfo(Protocol):
    """The properties of a black box that the cache stores."""

    @property
    def spec(self) -> str: ...

    @property
    def layer(self) -> str: ...

    @property
    def sha256(self) -> str: ...

    @property
    def feature_dim(self) -> int: ...

    @property
    def output_dim(self) -> int: ...

    @property
    def task(self) -> str: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def head(self) -> tuple[Tensor, Tensor] | None: ...


class FeatureCache:
    """Features [N, F] and outputs [N, O] of one black box for every image of a shard set and its horizontal flip."""

    def __init__(self, shards: ShardSet, path: Path, manifest: CacheManifest, location: Location) -> None:
        self.name = location.name
        self.location = location
        self.path = path
        """The folder with the manifest and the feature space; for a URL, a copy in the node cache."""
        self.manifest = manifest
        self.feature_dim = manifest.feature_dim
        self.output_dim = manifest.output_dim
        self.task = manifest.task
        self.class_names = manifest.class_names
        self.num_components = manifest.num_components
        self.blackbox = manifest.blackbox.model_dump()
        widths = {"features": self.feature_dim, "outputs": self.output_dim}
        self.arrays = {
            (name, kind): open_cached_arrays(shards, name, kind, width, manifest, location)
            for name in shards.split_names
            for kind, width in widths.items()
        }

    @classmethod
    def open(cls, shards: ShardSet, name: str) -> Self:
        """Open a cache: read its manifest and check the size of every file; `verify` also checks the content.

        The cache is given by its name in the shards, or by its folder or URL, as in `dataset.feature_cache`. Raises
        UserError if the cache does not exist, is not complete or belongs to different shards, or if a file is
        missing or truncated.
        """
        location = cache_location(shards, name)
        command = describe_extraction(shards, name)
        if location.is_remote:
            folder = RemoteFolder.open(location, MANIFEST_FILE, shards.access)
            path, manifest = folder.path, parse_cache_manifest(folder.manifest, CacheManifest, location)
        else:
            path, manifest = location.path, read_complete_manifest(location.path, command)
        if manifest.shards != shards.fingerprint:
            remedy = "name the cache of these shards" if is_outside_shards(name) else f"remove it and run `{command}`"
            raise UserError(
                f"{location}: the features were extracted from different shards than {shards.location}; {remedy}"
            )
        if not location.is_remote:
            check_file_sizes(path, manifest)
        for file, entry in manifest.files.items():
            if location.is_remote and file in COPIED_FILES:
                folder.copy_file(file, entry.sha256, entry.bytes)
        cache = cls(shards, path, manifest, location)
        for arrays in cache.arrays.values():
            arrays.check_sizes()
        return cache

    @cached_property
    def space(self) -> FeatureSpace:
        """The feature space: mean, standard deviation and principal components of the training features, with flips."""
        return load_space(self.path / SPACE_FILE, self.feature_dim)

    @cached_property
    def head(self) -> tuple[Tensor, Tensor] | None:
        """Weight [O, F] and bias [O] of the linear layer from features to outputs, if the black box has one."""
        if HEAD_FILE not in self.manifest.files:
            return None
        tensors, path = load_tensors(self.path / HEAD_FILE), self.path / HEAD_FILE
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if shapes != {"weight": (self.output_dim, self.feature_dim), "bias": (self.output_dim,)}:
            raise mismatched_cache_error(path, f"its shapes {shapes} do not fit the manifest")
        return tensors["weight"], tensors["bias"]

    @cached_property
    def summary(self) -> Mapping[str, Tensor]:
        """Numbers of predictions and mean features by class of the training images; empty in caches of old releases."""
        if SUMMARY_FILE not in self.manifest.files:
            return {}
        tensors, path = load_tensors(self.path / SUMMARY_FILE), self.path / SUMMARY_FILE
        if not is_valid_summary(tensors, self.output_dim, self.feature_dim):
            raise mismatched_cache_error(path, "its tensors do not fit the manifest")
        return tensors

    def features(self, split: str, rows: Sequence[int] | np.ndarray, flipped: bool | np.ndarray = False) -> np.ndarray:
        """Return the features of rows [n] of a split, float32 [n, F]; of the flipped images where `flipped` is true."""
        return self.arrays[split, "features"].gather_rows(rows, flipped)

    def outputs(self, split: str, rows: Sequence[int] | np.ndarray, flipped: bool | np.ndarray = False) -> np.ndarray:
        """Return the outputs of rows [n] of a split, float32 [n, O]; of the flipped images where `flipped` is true."""
        return self.arrays[split, "outputs"].gather_rows(rows, flipped)

    def verify(self) -> None:
        """Check the sha256 of every file that was not verified before. Raises UserError for the first mismatch.

        Files that are read through the node cache are left out: it checks each one when it arrives.
        """
        cached = {item.sha256 for arrays in self.arrays.values() for item in arrays.shard_files.items()}
        if self.location.is_remote:  # files of another version of featgan were not copied
            cached |= {entry.sha256 for file, entry in self.manifest.files.items() if file not in COPIED_FILES}
        verify_cache_files(self.path, self.manifest, cached)


def verify_cache_files(path: Path, manifest: CacheManifest, left_out: Set[str] = frozenset()) -> None:
    """Check the files of a cache, except those whose sha256 is left out. Raises UserError for the first mismatch."""
    files = {Path(file).name: entry.sha256 for file, entry in manifest.files.items()}
    hashes = {name: sha256 for name, sha256 in files.items() if sha256 not in left_out}
    modified = first_modified_file(path, hashes, "files")
    if modified is not None:
        raise corrupt_cache_error(modified, "its checksum does not match")


def read_complete_manifest(path: Path, command: str) -> CacheManifest:
    """Read the manifest of a cache in a local folder. Raises UserError if it is missing, incomplete or corrupted."""
    if not (path / MANIFEST_FILE).is_file():
        is_partial = (path / PARTIAL_MANIFEST_FILE).is_file()
        problem = "the feature cache is not complete" if is_partial else "no such feature cache"
        raise UserError(f"{path}: {problem}; run `{command}`" + list_existing_caches(path))
    return read_cache_manifest(path / MANIFEST_FILE, CacheManifest)


def open_cached_arrays(
    shards: ShardSet, split_name: str, kind: str, width: int, manifest: CacheManifest, location: Location
) -> ShardArrays:
    """Open the arrays of a split. Raises UserError if the manifest does not contain a file that must be downloaded."""
    split = shards.get_split(split_name)
    if not location.is_remote and not shards.access.stage:
        return open_split_arrays(location.path, split, kind, width)
    names = [array_path(Path(), shard, kind).name for shard in split.shard_names]
    entries = {Path(file).name: entry for file, entry in manifest.files.items()}
    missing = [name for name in names if name not in entries]
    if missing:
        raise corrupt_cache_error(location.join(MANIFEST_FILE).redacted, f"does not contain {missing[0]}")
    files = [(location.join(name), entries[name].bytes, entries[name].sha256) for name in names]
    return ShardArrays(shards.access.open_files(files), split.shard_counts, width)


def list_existing_caches(path: Path) -> str:
    """Return the names of the other caches of the shards as the end of an error message."""
    if path.parent.name != FEATURES_FOLDER:
        return ""
    names = sorted(manifest_path.parent.name for manifest_path in path.parent.glob(f"*/{MANIFEST_FILE}"))
    return f" (existing caches: {', '.join(names)})" if names else ""


def contains_files(path: Path) -> bool:
    """Return whether a path is a file, or a folder with anything else than the folder of its jobs."""
    return path.exists() and (not path.is_dir() or any(entry.name != "jobs" for entry in path.iterdir()))


@dataclass(frozen=True)
class PendingShard:
    """A shard whose features have not been computed yet: its name and its rows in the split."""

    split: str
    shard: str
    rows: range


class FeatureWriter:
    """Writes a cache shard by shard; finished shards are kept, so that an interrupted extraction resumes."""

    def __init__(self, shards: ShardSet, name: str, blackbox: BlackBoxInfo, num_components: int | None = None) -> None:
        """Create or resume the cache `name`: a name in the shards, or a folder, as in `dataset.feature_cache`.

        Raises UserError if the name is used by a cache of a different black box, layer or shard set. It is also raised
        if `num_components` is larger than the number of features.
        """
        self.shards = shards
        self.name = name
        self.path = cache_folder(shards, name)
        self.head = blackbox.head
        self.num_components = num_components
        identity = BlackBoxIdentity(spec=blackbox.spec, layer=blackbox.layer, sha256=blackbox.sha256)
        self.provenance = CacheProvenance(
            shards=shards.fingerprint,
            blackbox=identity,
            feature_dim=blackbox.feature_dim,
            output_dim=blackbox.output_dim,
            task=blackbox.task,  # type: ignore[arg-type]  # pydantic checks it
            class_names=blackbox.class_names,
        )
        if num_components is not None and not 1 <= num_components <= blackbox.feature_dim:
            raise UserError(
                f"--num-components {num_components}: must be between 1 and {blackbox.feature_dim}, "
                f"the number of features of layer {blackbox.layer}"
            )
        shards.get_split("train")
        self.check_existing_cache()
        with user_friendly_write_errors(self.path, DISK_FULL_REMEDY):
            self.path.mkdir(parents=True, exist_ok=True)
            atomic_write(self.path / PARTIAL_MANIFEST_FILE, self.provenance.model_dump_json(indent=1).encode())

    def check_existing_cache(self) -> None:
        """Raise UserError if the folder contains anything else than a cache with the same provenance."""
        option = "--out" if is_outside_shards(self.name) else "--cache-name"
        manifest_paths = [
            self.path / name for name in (MANIFEST_FILE, PARTIAL_MANIFEST_FILE) if (self.path / name).is_file()
        ]
        if not all(map(is_cache_manifest, manifest_paths)) or (not manifest_paths and contains_files(self.path)):
            raise UserError(f"{self.path}: already exists and is not a feature cache; choose another {option}")
        if not manifest_paths:
            return
        difference = read_cache_manifest(manifest_paths[0], CacheProvenance).describe_difference(self.provenance)
        if difference:
            raise UserError(f"{self.path}: contains features of {difference}; choose another {option} or remove it")

    def remove_corrupt_files(self) -> list[str]:
        """Remove the files of a complete cache that do not match its manifest, and return their names.

        If there are any, the manifest is also removed. The cache then counts as interrupted, and `list_pending` returns
        exactly the shards of the removed files.
        """
        if not (self.path / MANIFEST_FILE).is_file():
            return []
        files = read_cache_manifest(self.path / MANIFEST_FILE, CacheManifest).files
        corrupt_names = [
            Path(file).name for file, entry in files.items() if not is_intact(self.path / Path(file).name, entry)
        ]
        if corrupt_names:
            # One of the two manifests must always exist; otherwise the extraction could not resume.
            assert (self.path / PARTIAL_MANIFEST_FILE).is_file()
            for name in corrupt_names:
                (self.path / name).unlink(missing_ok=True)
            (self.path / MANIFEST_FILE).unlink()
        return corrupt_names

    def list_pending(self, rank: int = 0, world_size: int = 1) -> list[PendingShard]:
        """Return the shards of one of `world_size` processes that have not been computed yet, in order.

        Shard number i of the complete list belongs to the process of rank i % world_size.
        """
        pending = []
        number = 0
        for split in map(self.shards.get_split, self.shards.split_names):
            start = 0
            for shard, count in zip(split.shard_names, split.shard_counts, strict=True):
                if number % world_size == rank and not self.is_written(shard, count):
                    pending.append(PendingShard(split.name, shard, range(start, start + count)))
                start += count
                number += 1
        return pending

    def is_written(self, shard: str, count: int) -> bool:
        """Return whether both files of the shard exist and are complete."""
        try:
            for kind, width in self.widths.items():
                open_array(array_path(self.path, shard, kind), (count, 2, width))
        except UserError:
            return False
        return True

    @property
    def widths(self) -> Mapping[str, int]:
        """Number of values per image, by kind of array."""
        return {"features": self.provenance.feature_dim, "outputs": self.provenance.output_dim}

    def write_shard(self, pending: PendingShard, features: Tensor, outputs: Tensor) -> None:
        """Write features [n, 2, F] and outputs [n, 2, O] of one shard; index 1 of the second axis is the flipped image.

        Raises UserError if a value is not finite.
        """
        for (kind, width), values in zip(self.widths.items(), (features, outputs), strict=True):
            assert values.shape == (len(pending.rows), 2, width), (kind, values.shape)
            array = values.detach().to("cpu", torch.float32).numpy()
            self.check_finite(pending, array, kind)
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            with user_friendly_write_errors(self.path, DISK_FULL_REMEDY):
                atomic_write(array_path(self.path, pending.shard, kind), buffer.getvalue())

    def check_finite(self, pending: PendingShard, array: np.ndarray, kind: str) -> None:
        """Raise UserError, with the key of the first such image, if `array` [n, 2, width] is not finite."""
        bad_rows = np.flatnonzero(~np.isfinite(array).all(axis=(1, 2)))
        if len(bad_rows):
            key = self.shards.get_split(pending.split).keys_of([pending.rows[int(bad_rows[0])]])[0]
            raise UserError(
                f"{self.provenance.blackbox.spec}: {kind} of image {key} are not finite; "
                "check the classifier or choose another layer"
            )

    def read_outputs(self, split: str, rows: np.ndarray) -> np.ndarray:
        """Return the outputs [n, O] for rows of a split whose shards are all written."""
        arrays = open_split_arrays(self.path, self.shards.get_split(split), "outputs", self.provenance.output_dim)
        return arrays.gather_rows(rows, False)

    def set_output_names(self, class_names: tuple[str, ...], spec: str) -> None:
        """Replace the names of the outputs, and the SPEC that contains them."""
        identity = self.provenance.blackbox.model_copy(update={"spec": spec})
        self.provenance = self.provenance.model_copy(update={"class_names": class_names, "blackbox": identity})

    def commit(self) -> FeatureCache:
        """Fit the feature space, write the manifest and return the complete cache; all shards must already exist.

        Raises UserError if the file of a shard cannot be read back.
        """
        if pending := self.list_pending():
            file = array_path(self.path, pending[0].shard, "features")
            raise UserError(
                f"{file}: cannot be read back after it was written; check the disk and run the command again"
            )
        tensors = {SPACE_FILE: self.fit_space().tensors()}
        if self.head is not None:
            weight, bias = (tensor.detach().cpu().float().contiguous() for tensor in self.head)
            assert weight.shape == (self.provenance.output_dim, self.provenance.feature_dim), weight.shape
            tensors[HEAD_FILE] = {"weight": weight, "bias": bias}
        if summary := self.summarize():
            tensors[SUMMARY_FILE] = summary
        with user_friendly_write_errors(self.path, DISK_FULL_REMEDY):
            # Without a manifest, the cache counts as incomplete while the other files change.
            (self.path / MANIFEST_FILE).unlink(missing_ok=True)
            for name, content in tensors.items():
                atomic_write(self.path / name, save(content))
            self.write_manifest([*tensors])
        return FeatureCache.open(self.shards, self.name)

    def fit_space(self) -> FeatureSpace:
        """Fit the feature space to all training images and their horizontal flips.

        Raises UserError if all images have the same features.
        """
        space = self.space_fitting.fit(self.num_components)
        if space is None:
            blackbox = self.provenance.blackbox
            raise UserError(
                f"{blackbox.spec}: layer {blackbox.layer} outputs the same features for all images; "
                "choose another --layer"
            )
        return space

    def summarize(self) -> dict[str, Tensor]:
        """Summarize the training images for evaluations and reports."""
        split = self.shards.get_split("train")
        features, outputs = (open_split_arrays(self.path, split, kind, width) for kind, width in self.widths.items())
        return summarize_cache(features, outputs, self.provenance.task, split.expression, len(self.shards.classes))

    def save_sums(self, rank: int, world_size: int) -> None:
        """Save the part of one process of the sums that `commit` needs; all shards must already exist."""
        with user_friendly_write_errors(self.path, DISK_FULL_REMEDY):
            self.space_fitting.save_groups(rank, world_size)

    @property
    def space_fitting(self) -> SpaceFitting:
        """The fit of the feature space to the written features."""
        return SpaceFitting(self.path, self.shards.get_split("train"), self.provenance.feature_dim)

    def write_manifest(self, names: Sequence[str]) -> None:
        """Write the manifest with the size and hash of every file, then remove the partial manifest."""
        shards = [name for split in map(self.shards.get_split, self.shards.split_names) for name in split.shard_names]
        paths = [array_path(self.path, shard, kind) for shard in shards for kind in self.widths]
        paths += [self.path / name for name in names]
        files = {path.name: CacheFile(bytes=path.stat().st_size, sha256=sha256_of(path)) for path in paths}
        manifest = CacheManifest(
            **self.provenance.model_dump(),
            featgan=__version__,
            num_components=self.num_components,
            files=files,
            shards_location=str(self.shards.location.absolute()) if is_outside_shards(self.name) else None,
        )
        unset = {"shards_location"} if manifest.shards_location is None else None
        atomic_write(self.path / MANIFEST_FILE, manifest.model_dump_json(indent=1, exclude=unset).encode())
        for leftover in (self.path / PARTIAL_MANIFEST_FILE, *self.path.glob(".*.partial")):
            leftover.unlink(missing_ok=True)
        self.space_fitting.remove_saved_groups()
