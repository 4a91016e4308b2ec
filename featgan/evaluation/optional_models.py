"""Optional models that an evaluation uses besides the classifier: factor probe, second classifier, Inception, LPIPS."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from featgan.blackbox.loading import BlackBox, load_blackbox
from featgan.blackbox.output_check import name_outputs_by_labels
from featgan.config.trusted_callables import NO_CALLABLES, TrustedCallables
from featgan.data.feature_cache.cache import FeatureCache
from featgan.data.feature_cache.storage import FEATURES_FOLDER, cache_location, is_outside_shards
from featgan.data.shards.manifest import MANIFEST_FILE
from featgan.data.shards.shard_set import ShardSet
from featgan.distributed.work_group import SINGLE_PROCESS, WorkGroup
from featgan.errors import UserError
from featgan.inference.editor import predict
from featgan.metrics.inception import Inception
from featgan.metrics.lpips import Lpips
from featgan.metrics.predictions import Predictions
from featgan.system.files import sha256_of
from featgan.system.memory import choose_batch_size
from featgan.system.progress import track_progress

BATCH_SIZE = 64

MAX_NAMING_IMAGES = 1000
"""Number of labeled images that show which classes the outputs of a second classifier are, if they have no names."""


class SecondClassifier:
    """A classifier that was not used in training. A feature cache, if present, replaces it for real images."""

    def __init__(
        self,
        classifier: BlackBox,
        shards: ShardSet,
        run_cache: str | None = None,
        group: WorkGroup = SINGLE_PROCESS,
    ) -> None:
        self.classifier = classifier
        self.group = group
        self.shards = shards
        self.cache = find_feature_cache(shards, classifier, run_cache)
        self.class_names = classifier.class_names
        if classifier.task == "expression" and not self.class_names:
            self.class_names = name_outputs_by_labels(
                f"--second-classifier {classifier.spec}",
                shards,
                classifier.output_dim,
                self.read_outputs,
                MAX_NAMING_IMAGES,
            )

    def read_outputs(self, split: str, rows: np.ndarray) -> np.ndarray:
        """Return the outputs [n, O] for real images."""
        outputs = self.predict_real(split, rows).outputs
        assert outputs is not None
        return outputs

    def predict_real(self, split: str, rows: np.ndarray) -> Predictions:
        """Return the predictions for real images [N]."""
        if self.cache is not None:
            return Predictions.from_values(self.cache.features(split, rows), self.cache.outputs(split, rows))
        return self.predict(self.shards.get_split(split).decode(rows), f"real, {split}")

    def predict(self, images: Tensor, description: str) -> Predictions:
        """Return the predictions for images, uint8 [N, 3, S, S]; the progress bar shows the description."""
        # Each process of the group computes one part of a batch.
        batches = images.split(choose_batch_size(images.shape[-1], BATCH_SIZE) * self.group.world_size)
        predictions = [
            predict(self.classifier, batch, self.group)
            for batch in track_progress(batches, f"second: {description}", len(batches), "batches")
        ]
        outputs = [batch.outputs for batch in predictions if batch.outputs is not None]
        return Predictions(np.concatenate([batch.features for batch in predictions]), np.concatenate(outputs))

    def to_metadata(self) -> dict[str, str | None]:
        """Return the identity of the classifier for the evaluation document."""
        return {
            "spec": self.classifier.spec,
            "layer": self.classifier.layer,
            "sha256": self.classifier.sha256,
            "feature_cache": self.cache.name if self.cache else None,
        }


def find_feature_cache(shards: ShardSet, classifier: BlackBox, run_cache: str | None = None) -> FeatureCache | None:
    """Return a complete feature cache of this classifier and layer, if there is one.

    It is in the shards, or next to the cache of the run (`dataset.feature_cache`) if that is in another folder.
    """
    folders = [(shards.path / FEATURES_FOLDER).absolute()]
    if run_cache and is_outside_shards(run_cache) and not (location := cache_location(shards, run_cache)).is_remote:
        folders.append(location.path.absolute().parent)
    for manifest in (path for folder in folders for path in sorted(folder.glob(f"*/{MANIFEST_FILE}"))):
        try:
            cache = FeatureCache.open(shards, str(manifest.parent))
        except UserError:
            continue  # of other shards, or corrupted: the classifier is run instead
        if (cache.blackbox["sha256"], cache.blackbox["layer"]) == (classifier.sha256, classifier.layer):
            cache.verify()
            return cache
    return None


@dataclass(frozen=True)
class OptionalModels:
    """The optional models; None for those that were not given."""

    factor_probe: BlackBox | None = None
    second_classifier: SecondClassifier | None = None
    inception: Inception | None = None
    lpips: Lpips | None = None


def load_optional_models(
    shards: ShardSet,
    device: torch.device,
    factor_probe: str | None = None,
    second_classifier: str | None = None,
    inception: Path | None = None,
    lpips: Path | None = None,
    trusted: TrustedCallables = NO_CALLABLES,
    run_cache: str | None = None,
    group: WorkGroup = SINGLE_PROCESS,
) -> OptionalModels:
    """Load the given models. Raises UserError for the first that cannot be loaded.

    `run_cache` is the feature cache of the run; another one next to it may be that of the second classifier.
    """
    probe, second = (
        load_blackbox(spec, device=device, trusted=trusted) if spec else None
        for spec in (factor_probe, second_classifier)
    )
    return OptionalModels(
        probe,
        SecondClassifier(second, shards, run_cache, group) if second else None,
        Inception(inception, device) if inception else None,
        Lpips(lpips, device) if lpips else None,
    )


def describe_weights(inception: Path | None, lpips: Path | None) -> dict[str, dict[str, str | None]]:
    """Return name and sha256 of the weight files for the evaluation document."""
    files = {"inception": inception, "lpips": lpips}
    return {name: {"file": path.name, "sha256": sha256_of(path)} for name, path in files.items() if path}
