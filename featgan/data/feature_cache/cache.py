"""The feature cache beside the shards: what a black box says of every image and of its mirror image."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from featgan import __version__
from featgan.data.feature_cache.storage import (
    MANIFEST,
    PARTIAL,
    ArrayFile,
    BoxIdentity,
    CacheManifest,
    Origin,
    array_path,
    cache_folder,
    check_file,
    damaged,
    is_whole,
    load_tensors,
    open_array,
    read_origin,
    split_arrays,
)
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from featgan.features.space import FeatureSpace
from featgan.system.files import explain_write_errors, sha256_of, write_whole
from featgan.system.verified_hashes import first_changed

SPACE, HEAD = "space.safetensors", "head.safetensors"
MOST_ROWS, MOST_VALUES = 200_000, 1 << 26
"""Most feature vectors, and most numbers in them, that the space is fitted on."""

REMEDY = "free some space and run the command again: it goes on where it stopped"


class Box(Protocol):
    """What the cache keeps of a black box."""

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
    def output_kind(self) -> str: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def head(self) -> tuple[Tensor, Tensor] | None: ...


class FeatureCache:
    """Features [N, F] and outputs [N, O] of one black box for every image of a shard set and its mirror image."""

    def __init__(self, shards: ShardSet, path: Path, manifest: CacheManifest) -> None:
        self.name = path.name
        self.path = path
        self.parts = manifest
        self.feature_dim = manifest.feature_dim
        self.output_dim = manifest.output_dim
        self.output_kind = manifest.output_kind
        self.class_names = manifest.class_names
        self.num_components = manifest.num_components
        self.blackbox = manifest.blackbox.model_dump()
        widths = {"features": self.feature_dim, "outputs": self.output_dim}
        self.arrays = {
            (name, kind): split_arrays(path, shards.split(name), kind, width)
            for name in shards.split_names
            for kind, width in widths.items()
        }

    @classmethod
    def open(cls, shards: ShardSet, name: str) -> Self:
        """Read the manifest and compare every file's size with it.

        UserError: there is no such cache, it is not complete, belongs to other shards, or a file is missing or cut off.
        """
        path = cache_folder(shards, name)
        command = f"featgan extract --shards {shards.path} --blackbox SPEC --name {name}"
        if not (path / MANIFEST).is_file():
            what = "the feature cache is not complete" if (path / PARTIAL).is_file() else "no such feature cache"
            raise UserError(f"{path}: {what}; run `{command}`" + existing_names(path))
        manifest = read_origin(path / MANIFEST, CacheManifest)
        if manifest.shards != shards.fingerprint:
            raise UserError(
                f"{path}: the features are of other shards than {shards.path}; remove it and run `{command}`"
            )
        for file, entry in manifest.files.items():
            check_file(path / Path(file).name, entry)
        return cls(shards, path, manifest)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest as plain values."""
        return self.parts.model_dump(mode="json")

    @cached_property
    def space(self) -> FeatureSpace:
        """Mean, deviation and principal components of the training images' features, mirror images included."""
        return FeatureSpace(**load_tensors(self.path / SPACE))

    @cached_property
    def head(self) -> tuple[Tensor, Tensor] | None:
        """Weight [O, F] and bias [O] of the linear layer from features to outputs, where the box has one."""
        if HEAD not in self.parts.files:
            return None
        tensors = load_tensors(self.path / HEAD)
        return tensors["weight"], tensors["bias"]

    def features(self, split: str, rows: Sequence[int] | np.ndarray, mirrored: bool | np.ndarray = False) -> np.ndarray:
        """float32 [n, F]."""
        return self.arrays[split, "features"].gather(rows, mirrored)

    def outputs(self, split: str, rows: Sequence[int] | np.ndarray, mirrored: bool | np.ndarray = False) -> np.ndarray:
        """float32 [n, O]."""
        return self.arrays[split, "outputs"].gather(rows, mirrored)

    def verify(self) -> None:
        """Hash every file not found whole before; UserError names the first that changed since it was written."""
        hashes = {Path(file).name: entry.sha256 for file, entry in self.parts.files.items()}
        path = first_changed(self.path, hashes, "files")
        if path is not None:
            raise damaged(path, "its content is not what was extracted")


def existing_names(path: Path) -> str:
    """The caches that are there, to be shown after an error."""
    names = sorted(found.parent.name for found in path.parent.glob(f"*/{MANIFEST}"))
    return f" (there are: {', '.join(names)})" if names else ""


@dataclass(frozen=True)
class PendingShard:
    """A shard whose features are not computed yet: its name and its rows in the split."""

    split: str
    shard: str
    rows: range


class FeatureWriter:
    """Fills a cache shard by shard; what is written stays, so that an interrupted extraction goes on."""

    def __init__(self, shards: ShardSet, name: str, box: Box, num_components: int | None = None) -> None:
        """UserError: the name is taken by a cache of another box, layer or shards; more components than features."""
        self.shards = shards
        self.path = cache_folder(shards, name)
        self.head = box.head
        self.num_components = num_components
        identity = BoxIdentity(spec=box.spec, layer=box.layer, sha256=box.sha256)
        self.origin = Origin(
            shards=shards.fingerprint,
            blackbox=identity,
            feature_dim=box.feature_dim,
            output_dim=box.output_dim,
            output_kind=box.output_kind,  # type: ignore[arg-type]  # pydantic checks it
            class_names=box.class_names,
        )
        if num_components is not None and not 1 <= num_components <= box.feature_dim:
            raise UserError(f"components {num_components}: layer {box.layer} has {box.feature_dim} features")
        shards.split("train")
        self.check_existing()
        with explain_write_errors(self.path, REMEDY):
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(self.path / PARTIAL, self.origin.model_dump_json(indent=1).encode())

    def check_existing(self) -> None:
        """UserError unless what lies under this name, if anything, is of the same origin."""
        known = [self.path / name for name in (MANIFEST, PARTIAL) if (self.path / name).is_file()]
        if not known:
            if self.path.exists() and any(self.path.iterdir()):
                raise UserError(f"{self.path}: is there already and is no feature cache; choose another --name")
            return
        difference = read_origin(known[0], Origin).difference(self.origin)
        if difference:
            raise UserError(f"{self.path}: holds features of {difference}; choose another --name or remove it")

    def drop_damaged(self) -> list[str]:
        """Remove the files of a complete cache that are not as its manifest says, and then the manifest; their names.

        The cache is then one that was interrupted: `pending` names the shards of these files and no others.
        """
        if not (self.path / MANIFEST).is_file():
            return []
        files = read_origin(self.path / MANIFEST, CacheManifest).files
        bad = [Path(file).name for file, entry in files.items() if not is_whole(self.path / Path(file).name, entry)]
        if bad:
            # Written before the manifest goes: without either of the two, this would be no cache to go on with.
            assert (self.path / PARTIAL).is_file()
            for name in bad:
                (self.path / name).unlink(missing_ok=True)
            (self.path / MANIFEST).unlink()
        return bad

    def pending(self) -> list[PendingShard]:
        """Shards still to be computed, in order."""
        missing = []
        for split in map(self.shards.split, self.shards.split_names):
            start = 0
            for shard, count in zip(split.shard_names, split.shard_counts, strict=True):
                if not self.is_written(shard, count):
                    missing.append(PendingShard(split.name, shard, range(start, start + count)))
                start += count
        return missing

    def is_written(self, shard: str, count: int) -> bool:
        """Whether both of the shard's files are there and whole."""
        try:
            for kind, width in self.widths.items():
                open_array(array_path(self.path, shard, kind), (count, 2, width))
        except UserError:
            return False
        return True

    @property
    def widths(self) -> Mapping[str, int]:
        return {"features": self.origin.feature_dim, "outputs": self.origin.output_dim}

    def write(self, pending: PendingShard, features: Tensor, outputs: Tensor) -> None:
        """One shard's features [n, 2, F] and outputs [n, 2, O], index 1 of the mirrored image; finite numbers only."""
        for (kind, width), values in zip(self.widths.items(), (features, outputs), strict=True):
            assert values.shape == (len(pending.rows), 2, width), (kind, values.shape)
            array = values.detach().to("cpu", torch.float32).numpy()
            self.check_finite(pending, array, kind)
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            with explain_write_errors(self.path, REMEDY):
                write_whole(array_path(self.path, pending.shard, kind), buffer.getvalue())

    def check_finite(self, pending: PendingShard, array: np.ndarray, kind: str) -> None:
        broken = np.flatnonzero(~np.isfinite(array).all(axis=(1, 2)))
        if len(broken):
            key = self.shards.split(pending.split).keys[pending.rows[int(broken[0])]]
            raise UserError(
                f"{self.origin.blackbox.spec}: {kind} of image {key} are not finite; mend the box or its layer"
            )

    def commit(self) -> FeatureCache:
        """Fit the space on the training features and write the manifest; every shard must have been written."""
        assert not self.pending(), "commit before every shard is written"
        tensors = {SPACE: self.fit_space().tensors()}
        if self.head is not None:
            weight, bias = (tensor.detach().cpu().float().contiguous() for tensor in self.head)
            assert weight.shape == (self.origin.output_dim, self.origin.feature_dim), weight.shape
            tensors[HEAD] = {"weight": weight, "bias": bias}
        with explain_write_errors(self.path, REMEDY):
            # While the other files change, the cache is not complete.
            (self.path / MANIFEST).unlink(missing_ok=True)
            for name, content in tensors.items():
                write_whole(self.path / name, save(content))
            self.write_manifest([*tensors])
        return FeatureCache.open(self.shards, self.path.name)

    def fit_space(self) -> FeatureSpace:
        """On an even sample of the training images, each with its mirror image."""
        train = self.shards.split("train")
        arrays = split_arrays(self.path, train, "features", self.origin.feature_dim)
        most = min(MOST_ROWS, MOST_VALUES // self.origin.feature_dim) // 2
        rows = np.arange(0, len(train), -(-len(train) // max(1, most)))
        features = np.concatenate([arrays.gather(rows, False), arrays.gather(rows, True)])
        if np.ptp(features, axis=0).max() == 0:
            blackbox = self.origin.blackbox
            raise UserError(
                f"{blackbox.spec}: layer {blackbox.layer} gives all images the same features; choose another --layer"
            )
        return FeatureSpace.fit(torch.from_numpy(features), self.num_components)

    def write_manifest(self, names: Sequence[str]) -> None:
        """Sizes and hashes of all files, then the end of the partial state."""
        shards = [name for split in map(self.shards.split, self.shards.split_names) for name in split.shard_names]
        paths = [array_path(self.path, shard, kind) for shard in shards for kind in self.widths]
        paths += [self.path / name for name in names]
        files = {path.name: ArrayFile(bytes=path.stat().st_size, sha256=sha256_of(path)) for path in paths}
        manifest = CacheManifest(
            **self.origin.model_dump(), featgan=__version__, num_components=self.num_components, files=files
        )
        write_whole(self.path / MANIFEST, manifest.model_dump_json(indent=1).encode())
        for leftover in (self.path / PARTIAL, *self.path.glob(".*.partial")):
            leftover.unlink(missing_ok=True)
