"""Existing shards: check that they match the requested options, and repair corrupted ones in place."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featgan.data.shards.manifest import MANIFEST_FILE, ShardManifest, load_shard_manifest
from featgan.errors import UserError
from featgan.system.files import fsync_folder
from featgan.system.verified_hashes import first_modified_file

logger = logging.getLogger(__name__)


def find_existing_shards(out: Path, options: Mapping[str, Any], source_sha256: str) -> ShardManifest | None:
    """Return the manifest of `out` if it was packed from this source with these options, or None if `out` is empty.

    Raises UserError if `out` contains anything else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / MANIFEST_FILE).is_file():
        raise UserError(f"{out}: already exists and contains no packed shards; choose another --out")
    try:
        manifest = load_shard_manifest(out)
    except UserError as error:
        problem = str(error).rpartition(";")[0]
        raise UserError(f"{problem}; remove {out} and pack again, or choose another --out") from error
    expected = json.loads(json.dumps(options))
    differing = [name for name, value in expected.items() if manifest.options.get(name) != value]
    if differing:
        name = differing[0]
        option, existing_value = name.replace("_", " "), manifest.options.get(name)
        raise UserError(
            f"{out}: packed with {option} {existing_value}, not {expected[name]}; remove it or choose another --out"
        )
    if manifest.source_sha256 != source_sha256:
        raise UserError(f"{out}: packed from different images or labels; remove it or choose another --out")
    return manifest


def find_corrupt_shard(folder: Path, manifest: ShardManifest) -> Path | None:
    """Return the first shard that is missing or does not match its size or hash in the manifest, or None."""
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    for shard in shards:
        path = folder / shard.name
        if not path.is_file() or path.stat().st_size != shard.bytes:
            return path
    return first_modified_file(folder, {shard.name: shard.sha256 for shard in shards}, "shards")


def replace_shards(new_folder: Path, out: Path, old_manifest: ShardManifest, new_manifest: ShardManifest) -> None:
    """Move the files from `new_folder` to `out`, replacing the old ones; the manifest is moved last.

    Feature caches are kept if the new shards have the same bytes as the old ones. The bytes can differ if another
    version of a library crops or compresses differently; the caches are then removed, because they belong to other
    images. If the process is killed, the shards remain corrupted and the next packing repairs them.
    """
    if new_manifest.fingerprint != old_manifest.fingerprint:
        remove_feature_caches(out)
    for split in old_manifest.splits.values():
        for shard in split.shards:
            if not (new_folder / shard.name).exists():
                (out / shard.name).unlink(missing_ok=True)
    for path in sorted(new_folder.iterdir(), key=lambda path: path.name == MANIFEST_FILE):
        path.replace(out / path.name)
    fsync_folder(out)
    new_folder.rmdir()


def remove_feature_caches(out: Path) -> None:
    """Remove the feature caches of shards whose content changes."""
    if (out / "features").exists():
        shutil.rmtree(out / "features")
        logger.warning(f"{out / 'features'}: removed, because the packed images changed")
