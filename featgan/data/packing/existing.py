"""Shards that are there already: whether they are what is asked for, and damaged ones put right in place."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featgan.data.shards.manifest import MANIFEST, Manifest, load_manifest
from featgan.errors import UserError
from featgan.system.files import sync_folder
from featgan.system.progress import console
from featgan.system.verified_hashes import first_changed


def find_packed(out: Path, options: Mapping[str, Any], listing: str) -> Manifest | None:
    """The manifest of `out` when it is of exactly this; None when there is nothing; UserError for anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / MANIFEST).is_file():
        raise UserError(f"{out}: is there already and holds no packed shards; choose another --out")
    try:
        manifest = load_manifest(out)
    except UserError as error:
        what = str(error).rpartition(";")[0]
        raise UserError(f"{what}; remove {out} and pack again, or choose another --out") from error
    wanted = json.loads(json.dumps(options))
    differing = [name for name, value in wanted.items() if manifest.options.get(name) != value]
    if differing:
        name = differing[0]
        found = manifest.options.get(name)
        raise UserError(f"{out}: packed with {name} {found}, not {wanted[name]}; remove it or choose another --out")
    if manifest.source_sha256 != listing:
        raise UserError(f"{out}: packed from other images or labels; remove it or choose another --out")
    return manifest


def first_damaged(folder: Path, manifest: Manifest) -> Path | None:
    """The first shard that is missing, or of another size or content than when it was packed; None if all are whole."""
    shards = [shard for part in manifest.splits.values() for shard in part.shards]
    for shard in shards:
        path = folder / shard.name
        if not path.is_file() or path.stat().st_size != shard.bytes:
            return path
    return first_changed(folder, {shard.name: shard.sha256 for shard in shards}, "shards")


def put_in_place(fresh: Path, out: Path, former: Manifest, manifest: Manifest) -> None:
    """Move the files packed anew into `fresh` over those of `out`, the manifest last.

    Feature caches stay where the bytes are those of before, as they are unless another version cropped or compressed
    them; others belong to images that are gone, and go as well. Killed on the way, the shards are damaged still, and
    packing once more mends them.
    """
    if manifest.fingerprint != former.fingerprint:
        drop_features(out)
    for part in former.splits.values():
        for shard in part.shards:
            if not (fresh / shard.name).exists():
                (out / shard.name).unlink(missing_ok=True)
    for path in sorted(fresh.iterdir(), key=lambda path: path.name == MANIFEST):
        os.replace(path, out / path.name)
    sync_folder(out)
    fresh.rmdir()


def drop_features(out: Path) -> None:
    """Remove the feature caches of shards that are replaced by others."""
    if (out / "features").exists():
        shutil.rmtree(out / "features")
        console.print(f"{out / 'features'}: was of other bytes than those packed now; removed", markup=False)
