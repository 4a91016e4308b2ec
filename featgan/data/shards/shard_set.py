"""Reading of packed shards: their manifest and index, and checks of both."""

import logging
from pathlib import Path

import numpy as np

from featgan.data.shards.index import ShardEntry, SplitIndex, build_index, load_index, scan_shard, serialize_index
from featgan.data.shards.index_checks import has_valid_labels, is_within_shards
from featgan.data.shards.manifest import ShardFile, ShardManifest, SplitManifest, load_shard_manifest
from featgan.data.shards.reading import changed_shard_error
from featgan.data.shards.split import Split
from featgan.errors import UserError
from featgan.system.files import atomic_write, sha256_of
from featgan.system.locations import Location
from featgan.system.progress import track_progress
from featgan.system.verified_hashes import first_modified_file

logger = logging.getLogger(__name__)

NO_VALIDATION_PROBLEM = "no validation split, which `featgan evaluate` needs, and `featgan render` without --images"
NO_VALIDATION_REMEDY = "pack the images again to another folder; packing creates a validation split by default"


class ShardSet:
    """A folder written by `featgan pack`."""

    def __init__(self, path: Path, manifest: ShardManifest) -> None:
        self.path = path
        self.image_size = manifest.image_size
        self.classes = manifest.classes
        self.attribute_names = manifest.attribute_names
        self.factor_names = manifest.factor_names
        self.fingerprint = manifest.fingerprint
        self.manifest = manifest
        self.splits: dict[str, Split] = {}

    @classmethod
    def open(cls, path: Path | str | Location) -> "ShardSet":
        """Open a shard folder: read its manifest and check the size of every shard; `verify` also checks the content.

        Raises UserError if the folder is not a shard folder, or if a shard is missing or has the wrong size.
        """
        folder = path.path if isinstance(path, Location) else Path(path)
        manifest = load_shard_manifest(folder)
        for split in manifest.splits.values():
            for shard in split.shards:
                check_shard_size(folder / shard.name, shard)
        return cls(folder, manifest)

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
            self.splits[name] = Split(
                name, self.path, self.image_size, split_manifest, open_split_index(self, name, split_manifest)
            )
        return self.splits[name]

    def verify(self) -> None:
        """Check the sha256 of every shard that was not verified before. Raises UserError for the first mismatch."""
        hashes = {shard.name: shard.sha256 for split in self.manifest.splits.values() for shard in split.shards}
        path = first_modified_file(self.path, hashes, "shards")
        if path is not None:
            raise changed_shard_error(path, "its checksum does not match")


def check_shard_size(path: Path, shard: ShardFile) -> None:
    """Raise UserError if the shard is missing or does not have the size in the manifest."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise changed_shard_error(path, "the shard is missing") from None
    if size < shard.bytes:
        raise changed_shard_error(path, f"the shard is truncated, {size} of {shard.bytes} bytes")
    if size > shard.bytes:
        raise changed_shard_error(path, f"the shard has {size} bytes, not {shard.bytes}")


def open_split_index(shards: ShardSet, name: str, split_manifest: SplitManifest) -> SplitIndex:
    """Return the index of a split; it is rebuilt from the tar files if it is missing or does not match the manifest."""
    path = shards.path / f"{name}.index.npz"
    current = path.is_file() and sha256_of(path) == split_manifest.index_sha256
    index = load_index(path) if current else rebuild_index(shards, split_manifest, path)
    limits = np.repeat(
        [shard.bytes for shard in split_manifest.shards], [shard.count for shard in split_manifest.shards]
    )
    if not has_valid_labels(index, shards.manifest) or not is_within_shards(index, limits, shards.image_size):
        raise changed_shard_error(path, "the index does not match the shards")
    return index


def rebuild_index(shards: ShardSet, split_manifest: SplitManifest, path: Path) -> SplitIndex:
    """Rebuild the index of a split from its tar files and save it.

    Raises UserError if the tar files do not match the manifest.
    """
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
