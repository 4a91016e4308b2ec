"""The manifest of a shard folder: the packed data set, and the size and hash of every file."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from featgan.errors import UserError

MANIFEST_FILE = "manifest.json"
"""Name of the manifest of a shard folder and of a feature cache."""

MAX_MANIFEST_BYTES = 64 << 20

Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
SplitName = Literal["train", "validation"]
ValidationOrigin = Literal["source", "created", "none"]
"""Where the validation split comes from: the source has one, or packing created one, or the shards have none."""


class ManifestModel(BaseModel):
    """Base of the parts of the manifest; unknown fields are ignored, because a later version may add some."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ShardFile(ManifestModel):
    """One tar file."""

    name: Annotated[str, Field(pattern=r"^(train|validation)-\d{5,}\.tar$")]
    count: Count
    bytes: Count
    sha256: Sha256

    @property
    def stem(self) -> str:
        """Name of the shard in the feature caches."""
        return self.name.removesuffix(".tar")


class SplitManifest(ManifestModel):
    """One split: its shards in order and the number of images per class."""

    count: Count
    classes: dict[str, Count]
    shards: tuple[ShardFile, ...]
    index_sha256: Sha256


class SkippedFile(ManifestModel):
    """A file that could not be used, and the reason."""

    source: str
    reason: str


class ShardManifest(ManifestModel):
    """The manifest of a shard folder; equal input and options give equal manifests."""

    format: Literal["featgan-shards"] = "featgan-shards"
    version: Literal[1] = 1
    featgan: str
    source: str
    source_sha256: Sha256
    options: dict[str, Any]
    image_size: Annotated[int, Field(ge=1, le=4096)]
    classes: tuple[str, ...]
    attribute_names: tuple[str, ...] = ()
    factor_names: tuple[str, ...] = ()
    splits: dict[SplitName, SplitManifest]
    validation_split: ValidationOrigin = "source"
    skipped: dict[str, Count]
    skipped_files: tuple[SkippedFile, ...] = ()

    @property
    def fingerprint(self) -> str:
        """A sha256 over the hashes of the shards; it identifies the images and their order."""
        hashes = [f"{shard.name} {shard.sha256}\n" for split in self.splits.values() for shard in split.shards]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    def to_json(self) -> str:
        """Return the manifest as JSON, as it is stored."""
        return json.dumps(self.model_dump(mode="json"), indent=1) + "\n"


def load_shard_manifest(folder: Path) -> ShardManifest:
    """Read SHARDS/manifest.json. Raises UserError if it is missing or corrupted."""
    path = folder / MANIFEST_FILE
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; create it with `featgan pack LAYOUT SOURCE --out {folder}`")
    if not path.is_file():
        has_tar_files = any(folder.glob("*.tar"))
        problem = "tar files without a manifest.json" if has_tar_files else "not a shard folder (no manifest.json)"
        raise UserError(f"{folder}: {problem}; create shards with `featgan pack LAYOUT SOURCE --out OUT`")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise UserError(f"{path}: larger than {MAX_MANIFEST_BYTES >> 20} MiB; pack the images again")
    try:
        return ShardManifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first_error = error.errors(include_url=False)[0]
        location = ".".join(str(part) for part in first_error["loc"]) or "the file"
        raise UserError(f"{path}: corrupted ({location}: {first_error['msg']}); pack the images again") from error
