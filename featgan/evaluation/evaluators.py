"""Who looks at edited pictures beside the box: a probe of true factors, a witness, Inception, LPIPS."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from featgan.blackbox.loading import BlackBox, load_blackbox
from featgan.data.feature_cache.cache import FeatureCache
from featgan.data.feature_cache.storage import MANIFEST
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from featgan.inference.editor import ask
from featgan.metrics.inception import Inception
from featgan.metrics.lpips import Lpips
from featgan.metrics.predictions import Response
from featgan.system.files import sha256_of
from featgan.system.progress import track

BATCH = 64


class Witness:
    """A second black box, which took no part in training; what it said of real images is read from a cache if any."""

    def __init__(self, box: BlackBox, shards: ShardSet) -> None:
        self.box = box
        self.shards = shards
        self.cache = find_cache(shards, box)

    def real(self, split: str, rows: np.ndarray) -> Response:
        """What it says of real images [N]."""
        if self.cache is not None:
            return Response.of(self.cache.features(split, rows), self.cache.outputs(split, rows))
        return self.see(self.shards.split(split).decode(rows), f"real, {split}")

    def see(self, images: Tensor, what: str) -> Response:
        """What it says of images uint8 [N, 3, S, S], behind a bar that says what they are."""
        parts = images.split(BATCH)
        found = [ask(self.box, part) for part in track(parts, f"witness: {what}", len(parts), "batches")]
        outputs = [part.outputs for part in found if part.outputs is not None]
        return Response(np.concatenate([part.features for part in found]), np.concatenate(outputs))

    def describe(self) -> dict[str, str | None]:
        """Which box, for the evaluation's record."""
        cache = self.cache.name if self.cache else None
        return {"spec": self.box.spec, "layer": self.box.layer, "sha256": self.box.sha256, "features": cache}


def find_cache(shards: ShardSet, box: BlackBox) -> FeatureCache | None:
    """A whole cache beside the shards that is of this box and layer, if there is one."""
    for manifest in sorted((shards.path / "features").glob(f"*/{MANIFEST}")):
        try:
            cache = FeatureCache.open(shards, manifest.parent.name)
        except UserError:
            continue  # of other shards, or damaged: the box itself is asked instead
        if (cache.blackbox["sha256"], cache.blackbox["layer"]) == (box.sha256, box.layer):
            cache.verify()
            return cache
    return None


@dataclass(frozen=True)
class Observers:
    """All of them; None where the user named none."""

    probe: BlackBox | None = None
    witness: Witness | None = None
    inception: Inception | None = None
    lpips: Lpips | None = None


def load_observers(
    shards: ShardSet,
    device: torch.device,
    probe: str | None = None,
    witness: str | None = None,
    inception: Path | None = None,
    lpips: Path | None = None,
) -> Observers:
    """Open what is named; UserError for the first that cannot be used, before anything is measured."""
    return Observers(
        load_blackbox(probe, device=device) if probe else None,
        Witness(load_blackbox(witness, device=device), shards) if witness else None,
        Inception(inception, device) if inception else None,
        Lpips(lpips, device) if lpips else None,
    )


def describe_files(inception: Path | None, lpips: Path | None) -> dict[str, dict[str, str]]:
    """Name and hash of the weights that the user gave, for the evaluation's record."""
    files = {"inception": inception, "lpips": lpips}
    return {name: {"file": path.name, "sha256": sha256_of(path)} for name, path in files.items() if path}
