"""Reading of packed shards: their manifest and index, and checks of both."""

import logging
from collections.abc import Callable
from pathlib import Path

from featgan.data.remote.access import DEFAULT_ACCESS, DataAccess
from featgan.data.remote.remote_folder import RemoteFolder, folder_of
from featgan.data.remote.shard_files import ShardFiles
from featgan.data.shards.index import ShardEntry, SplitIndex, build_index, load_index, scan_shard, serialize_index
from featgan.data.shards.index_checks import check_identifier, is_valid_index
from featgan.data.shards.manifest import (
    MANIFEST_FILE,
    ShardFile,
    ShardManifest,
    SplitManifest,
    load_shard_manifest,
    parse_shard_manifest,
)
from featgan.data.shards.reading import changed_shard_error
from featgan.data.shards.split import INDEX_MISMATCH, Split
from featgan.errors import UserError
from featgan.system.files import atomic_write, sha256_of
from featgan.system.locations import Location
from featgan.system.os_errors import os_error_reason
from featgan.system.progress import track_progress
from featgan.system.verified_hashes import first_modified_file, verify_once

MAX_INDEX_ROW_BYTES, MAX_INDEX_HEADER_BYTES = 9 << 10, 1 << 20
"""Bytes of an image in an index, and of everything else."""

logger = logging.getLogger(__name__)

NO_VALIDATION_PROBLEM = "no validation split, which `featgan evaluate` needs, and `featgan render` without --images"
NO_VALIDATION_REMEDY = "pack the images again to another folder; packing creates a validation split by default"


class ShardSet:
    """A folder written by `featgan pack` or `featgan index`, on this machine or behind a URL."""

    def __init__(
        self,
        path: Path,
        manifest: ShardManifest,
        access: DataAccess = DEFAULT_ACCESS,
        remote_folder: RemoteFolder | None = None,
    ) -> None:
        self.path = path
        """The folder with the manifest and the indexes; for a URL, a copy in the node cache."""
        self.access = access
        self.remote_folder = remote_folder
        self.location = remote_folder.location if remote_folder else Location.from_path(path)
        self.image_size = manifest.image_size
        self.classes = manifest.classes
        self.attribute_names = manifest.attribute_names
        self.factor_names = manifest.factor_names
        self.fingerprint = manifest.fingerprint
        self.manifest = manifest
        self.splits: dict[str, Split] = {}

    @classmethod
    def open(cls, location: Path | str | Location, access: DataAccess = DEFAULT_ACCESS) -> "ShardSet":
        """Open a shard folder: read its manifest and check the size of every shard; `verify` also checks the content.

        The location is the path or URL of the folder or its manifest. Shards behind a URL are checked when they arrive.
        Raises UserError if the folder is not a shard folder, or if a shard is missing or has the wrong size.
        """
        folder = folder_of(parse_location(location), MANIFEST_FILE)
        if folder.is_remote:
            return cls.open_remote(folder, access)
        manifest = load_shard_manifest(folder.path)
        for split in manifest.splits.values():
            for shard in split.shards:
                if not (shard_location := shard.locate(folder)).is_remote:
                    check_shard_size(shard_location.path, shard)
        return cls(folder.path, manifest, access)

    @classmethod
    def open_remote(cls, location: Location, access: DataAccess) -> "ShardSet":
        """Open a shard folder behind a URL. Raises UserError if its manifest is missing, corrupted or not allowed."""
        folder = RemoteFolder.open(location, MANIFEST_FILE, access)
        manifest = parse_shard_manifest(folder.manifest, location.join(MANIFEST_FILE))
        for split in manifest.splits.values():
            for shard in split.shards:
                shard.locate(location)
        return cls(folder.path, manifest, access, folder)

    @property
    def has_validation(self) -> bool:
        """Whether there are validation images, which evaluations, reports and the interactive page show."""
        return "validation" in self.manifest.splits

    @property
    def split_names(self) -> tuple[str, ...]:
        return tuple(self.manifest.splits)

    def get_split(self, name: str) -> "Split":
        """Return the split "train" or "validation". Raises UserError if the shards do not contain it."""
        if name not in self.splits:
            manifests = self.manifest.splits.items()
            split_manifest = next((manifest for split_name, manifest in manifests if split_name == name), None)
            if split_manifest is None and name == "validation":
                raise UserError(f"{self.path}: {NO_VALIDATION_PROBLEM}; {NO_VALIDATION_REMEDY}")
            if split_manifest is None:
                raise UserError(f"{self.path}: no split {name!r}; the shards contain {', '.join(self.split_names)}")
            index = open_split_index(self, name, split_manifest)
            files = self.open_files(split_manifest)
            transform = self.manifest.transform
            self.splits[name] = Split(name, self.path, self.image_size, split_manifest, index, files, transform)
        return self.splits[name]

    def open_files(self, split_manifest: SplitManifest) -> ShardFiles:
        """Return the shards of a split for reading."""
        return self.access.open_files(
            [(shard.locate(self.location), shard.bytes, shard.sha256) for shard in split_manifest.shards]
        )

    def verify(self) -> None:
        """Check the sha256 of every shard that was not verified before. Raises UserError for the first mismatch.

        Shards that are read through the node cache are left out: it checks each one when it arrives.
        """
        splits = [split for split in self.manifest.splits.values() if not self.open_files(split).items()]
        # The name of a tar in another folder is its absolute path.
        hashes = {
            str(shard.locate(self.location).path.absolute()) if shard.location else shard.name: shard.sha256
            for split in splits
            for shard in split.shards
        }
        path = first_modified_file(self.path, hashes, "shards")
        if path is not None:
            raise changed_shard_error(path, "its checksum does not match")


def parse_location(location: Path | str | Location) -> Location:
    """Return the location that a path or the text of a path or URL names."""
    if isinstance(location, Location):
        return location
    return Location.from_path(location) if isinstance(location, Path) else Location.parse(location)


def check_shard_size(path: Path, shard: ShardFile) -> None:
    """Raise UserError if the shard is missing or does not have the size in the manifest."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise changed_shard_error(path, "the shard is missing") from None
    except OSError as error:  # such as a name that is too long
        raise UserError(f"{path}: the shard cannot be read: {os_error_reason(error)}; check its path") from None
    if size < shard.bytes:
        raise changed_shard_error(path, f"the shard is truncated, {size} of {shard.bytes} bytes")
    if size > shard.bytes:
        raise changed_shard_error(path, f"the shard has {size} bytes, not {shard.bytes}")


def open_split_index(shards: ShardSet, name: str, split_manifest: SplitManifest) -> SplitIndex:
    """Return the index of a split; it is rebuilt from the tar files if it is missing or does not match the manifest.

    An index that was checked before is mapped, and not read.
    """
    path = shards.path / f"{name}.index.npz"
    if shards.remote_folder:
        shards.remote_folder.copy_file(path.name, split_manifest.index_sha256, max_index_bytes(split_manifest))

    def check_content() -> None:
        if not path.is_file() or sha256_of(path) != split_manifest.index_sha256:
            raise ChangedIndexError
        check_index(path, lambda: load_index(path), shards.manifest, split_manifest)

    try:
        verify_once(path, check_identifier(shards.manifest, split_manifest), check_content)
        return load_index(path)
    except (ChangedIndexError, FileNotFoundError):
        index = rebuild_index(shards, split_manifest, path)
        check_index(path, lambda: index, shards.manifest, split_manifest)
        return index


class ChangedIndexError(Exception):
    """The hash of an index does not match the manifest."""


def check_index(path: Path, load: Callable[[], SplitIndex], manifest: ShardManifest, split: SplitManifest) -> None:
    """Raise UserError if the content of an index does not match the shards."""
    if not is_valid_index(load, manifest, split):
        raise changed_shard_error(path, INDEX_MISMATCH)


def max_index_bytes(split_manifest: SplitManifest) -> int:
    """Return the size that the index of a split cannot exceed."""
    return split_manifest.count * MAX_INDEX_ROW_BYTES + MAX_INDEX_HEADER_BYTES


def rebuild_index(shards: ShardSet, split_manifest: SplitManifest, path: Path) -> SplitIndex:
    """Rebuild the index of a split from its tar files and save it.

    Raises UserError if the tar files do not match the manifest.
    """
    if shards.manifest.transform is not None:
        raise UserError(f"{path}: missing or changed; run the same `featgan index` command again")
    entries: list[ShardEntry] = []
    for shard in track_progress(split_manifest.shards, f"rebuilding {path.name}", unit="shards"):
        shard_entries = list(scan_shard(shards.path / shard.name))
        if len(shard_entries) != shard.count:
            raise changed_shard_error(
                shards.path / shard.name, f"the shard contains {len(shard_entries)} of {shard.count} images"
            )
        entries += shard_entries
    try:
        index = build_index(entries, shards.attribute_names, shards.factor_names)
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise changed_shard_error(path, f"the shards contain labels that are not numbers ({error})") from error
    try:
        atomic_write(path, serialize_index(index))
    except OSError as error:
        logger.warning(f"{path}: not saved ({error.strerror}); it will be rebuilt at every start")
    return index
