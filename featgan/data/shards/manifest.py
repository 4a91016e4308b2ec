"""The manifest of a shard folder: the packed data set, and the size and hash of every file."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from featgan.errors import UserError
from featgan.system.json_files import JsonError, parse_json, read_json
from featgan.system.limits import MAX_IMAGE_SIZE, MIN_FOREIGN_IMAGE_BYTES, MIN_IMAGE_BYTES
from featgan.system.locations import Location

MANIFEST_FILE = "manifest.json"
"""Name of the manifest of a shard folder and of a feature cache."""

PACK_REMEDY = "pack the images again"

Count = Annotated[int, Field(ge=0, lt=2**63)]
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
    location: Annotated[str, Field(max_length=4096)] | None = None
    """Path or URL of a tar of another program: relative to the manifest, or absolute. `name` is then only a name."""

    @property
    def stem(self) -> str:
        """Name of the shard in the feature caches."""
        return self.name.removesuffix(".tar")

    def locate(self, folder: Location) -> Location:
        """Return where the file is; `folder` contains the manifest."""
        return folder.resolve(self.location or self.name)


class SplitManifest(ManifestModel):
    """One split: its shards in order and the number of images per class."""

    count: Count
    classes: dict[str, Count]
    shards: tuple[ShardFile, ...]
    index_sha256: Sha256

    @model_validator(mode="after")
    def check_counts(self) -> Self:
        """Reject a number of images that differs from the sum over the shards, or that the shards cannot contain."""
        if sum(shard.count for shard in self.shards) != self.count or sum(self.classes.values()) > self.count:
            raise ValueError(f"the numbers of images of its shards or classes do not match its count {self.count}")
        for shard in self.shards:
            if shard.count * (MIN_FOREIGN_IMAGE_BYTES if shard.location else MIN_IMAGE_BYTES) > shard.bytes:
                raise ValueError(f"{shard.name}: {shard.count} images do not fit into {shard.bytes} bytes")
        return self


class Transform(ManifestModel):
    """How an image of a foreign tar becomes a square, each time that it is read."""

    crop: Annotated[int, Field(ge=8, lt=2**31)] | None = None
    """Side of the center crop in pixels; null: the largest center square."""


class SkippedFile(ManifestModel):
    """A file that could not be used, and the reason."""

    source: str
    reason: str


class ShardManifest(ManifestModel):
    """The manifest of a shard folder; equal input and options give equal manifests."""

    format: Literal["featgan-shards"] = "featgan-shards"
    version: Literal[1, 2] = 1
    """2: the tars are those of another program, and an older version of featgan cannot read them."""
    featgan: str
    source: str
    source_sha256: Sha256
    options: dict[str, Any]
    image_size: Annotated[int, Field(ge=1, le=MAX_IMAGE_SIZE)]
    classes: tuple[str, ...]
    attribute_names: tuple[str, ...] = ()
    factor_names: tuple[str, ...] = ()
    splits: dict[SplitName, SplitManifest]
    validation_split: ValidationOrigin = "source"
    skipped: dict[str, Count]
    skipped_files: tuple[SkippedFile, ...] = ()
    transform: Transform | None = None
    """For version 2."""

    @model_validator(mode="after")
    def check_version(self) -> Self:
        """Reject tars of another program in version 1, and packed ones in version 2."""
        locations = [shard.location for split in self.splits.values() for shard in split.shards]
        if (self.version == 2) != (self.transform is not None) or any(
            bool(x) != (self.version == 2) for x in locations
        ):
            raise ValueError(f"version {self.version}: does not fit the locations of the shards and the transform")
        return self

    @model_validator(mode="after")
    def check_classes(self) -> Self:
        """Reject a split that counts other classes than those of the manifest."""
        for name, split in self.splits.items():
            if set(split.classes) != set(self.classes):
                raise ValueError(f"splits.{name}.classes: not the classes of the data set")
        return self

    @property
    def fingerprint(self) -> str:
        """A sha256 over the hashes of the shards; it identifies the images and their order."""
        hashes = [f"{shard.name} {shard.sha256}\n" for split in self.splits.values() for shard in split.shards]
        if self.transform is not None:  # the index and the transform select and change the images
            hashes += [f"{name} {split.index_sha256}\n" for name, split in self.splits.items()]
            hashes.append(f"{self.image_size} {self.transform.crop}\n")
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    def to_json(self) -> str:
        """Return the manifest as JSON, as it is stored."""
        values = self.model_dump(mode="json")
        if self.version == 1:
            del values["transform"]
            for split in values["splits"].values():
                for shard in split["shards"]:
                    del shard["location"]
        return json.dumps(values, indent=1) + "\n"


def load_shard_manifest(folder: Path) -> ShardManifest:
    """Read SHARDS/manifest.json. Raises UserError if it is missing or corrupted."""
    path = folder / MANIFEST_FILE
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; create it with `featgan pack LAYOUT SOURCE --out {folder}`")
    if not path.exists():
        has_tar_files = any(folder.glob("*.tar"))
        problem = "tar files without a manifest.json" if has_tar_files else "not a shard folder (no manifest.json)"
        raise UserError(f"{folder}: {problem}; create shards with `featgan pack LAYOUT SOURCE --out OUT`")
    return check_shard_manifest(read_json(path, remedy=PACK_REMEDY), path)


def parse_shard_manifest(content: bytes, location: object) -> ShardManifest:
    """Parse a manifest that was downloaded from `location`. Raises UserError if it is corrupted."""
    try:
        value = parse_json(content)
    except JsonError as error:
        raise UserError(f"{location}: {error}; {PACK_REMEDY}") from None
    return check_shard_manifest(value, location)


def check_shard_manifest(value: Any, location: object) -> ShardManifest:
    """Return the manifest that a JSON value describes. Raises UserError if it is corrupted."""
    try:
        return ShardManifest.model_validate(value)
    except ValidationError as error:
        first_error = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first_error["loc"]) or "the file"
        raise UserError(f"{location}: corrupted ({field}: {first_error['msg']}); {PACK_REMEDY}") from error
