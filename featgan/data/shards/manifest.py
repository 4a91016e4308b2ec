"""The manifest of a shard folder: what was packed, with the size and hash of every file."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from featgan.errors import UserError

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 64 << 20

Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
SplitName = Literal["train", "validation"]


class Part(BaseModel):
    """A group of fields of the manifest; a later version may add some."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ShardFile(Part):
    """One tar."""

    name: Annotated[str, Field(pattern=r"^(train|validation)-\d{5,}\.tar$")]
    count: Count
    bytes: Count
    sha256: Sha256

    @property
    def stem(self) -> str:
        """Its name in the feature caches."""
        return self.name.removesuffix(".tar")


class SplitPart(Part):
    """One split: its shards in order and its class histogram (class name -> images)."""

    count: Count
    classes: dict[str, Count]
    shards: tuple[ShardFile, ...]
    index_sha256: Sha256


class SkippedFile(Part):
    """A file that could not be used."""

    source: str
    reason: str


class Manifest(Part):
    """The whole folder; equal input and options give an equal manifest."""

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
    splits: dict[SplitName, SplitPart]
    skipped: dict[str, Count]
    skipped_files: tuple[SkippedFile, ...] = ()

    @property
    def fingerprint(self) -> str:
        """sha256 over the shards' hashes: which images, in which order."""
        hashes = [f"{shard.name} {shard.sha256}\n" for part in self.splits.values() for shard in part.shards]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    def text(self) -> str:
        """As it is stored."""
        return json.dumps(self.model_dump(mode="json"), indent=1) + "\n"


def load_manifest(folder: Path) -> Manifest:
    """Read SHARDS/manifest.json; UserError when there is none or it is damaged."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; write one with `featgan pack LAYOUT SOURCE --out {folder}`")
    if not path.is_file():
        foreign = any(folder.glob("*.tar"))
        what = "tar files without a manifest.json" if foreign else "no manifest.json, so these are no shards"
        raise UserError(f"{folder}: {what}; write shards with `featgan pack LAYOUT SOURCE --out OUT`")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise UserError(f"{path}: larger than {MAX_MANIFEST_BYTES >> 20} MiB; pack the images again")
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"{path}: damaged ({where}: {first['msg']}); pack the images again") from error
