"""The evaluator of feature-conditioned models, and the metrics that only exist in a feature space."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from featgan.blackbox.loading import BlackBox
from featgan.data.feature_cache.cache import FeatureCache
from featgan.data.feature_cache.summary import evenly_spaced_rows
from featgan.data.row_selection import AllRows
from featgan.data.shards.shard_set import ShardSet
from featgan.data.shards.split import Split
from featgan.distributed.work_group import SINGLE_PROCESS, WorkGroup
from featgan.evaluation.evaluator import MAX_SHARED_TARGETS, EditResults, EvaluationPairs, MetricsByColumn
from featgan.inference.editor import ImageEditor, predict
from featgan.inference.model import EditingModel
from featgan.metrics import baselines, decisions, faithfulness
from featgan.metrics.bootstrap import Booleans, Floats, Integers, to_float64
from featgan.metrics.predictions import Predictions, standardize_features
from featgan.metrics.subgroups import (
    Subgroup,
    SubgroupScore,
    class_subgroups,
    octant_subgroups,
    target_progress_scores,
)
from featgan.system.progress import track_progress

MAX_TRAINING_IMAGES = 50_000
"""Number of evenly spaced training images among which the nearest real image is searched."""


class FeatureEvaluator:
    """A feature-conditioned model with its classifier and its validation pairs; implements `Evaluator`."""

    def __init__(
        self,
        model: EditingModel,
        classifier: BlackBox,
        shards: ShardSet,
        cache: FeatureCache,
        max_pairs: int,
        group: WorkGroup = SINGLE_PROCESS,
    ) -> None:
        assert model.space is not None
        self.model = model
        self.editor = ImageEditor(model, group)
        self.classifier = classifier
        self.shards = shards
        self.cache = cache
        self.space = model.space
        self.split: Split = shards.get_split("validation")
        self.pairs = EvaluationPairs.sample(len(self.split), max_pairs)

    @property
    def task(self) -> str:
        return self.cache.task

    @property
    def class_names(self) -> Sequence[str]:
        return self.cache.class_names

    def cached_predictions(self, split: str, rows: np.ndarray, flipped: bool = False) -> Predictions:
        """Return the classifier's predictions for real images, from the feature cache."""
        return Predictions.from_values(
            self.cache.features(split, rows, flipped), self.cache.outputs(split, rows, flipped)
        )

    @cached_property
    def source_images(self) -> Tensor:
        return self.validation_images(self.pairs.source_rows)

    @cached_property
    def source_predictions(self) -> Predictions:
        return self.cached_predictions("validation", self.pairs.source_rows)

    @cached_property
    def target_predictions(self) -> Predictions:
        return self.source_predictions.select_rows(self.pairs.target_indices)

    @property
    def source_conditions(self) -> Tensor:
        return torch.from_numpy(self.source_predictions.features)

    @property
    def target_differs(self) -> Booleans | None:
        return decisions.decision_differs(self.task, self.source_predictions, self.target_predictions)

    @cached_property
    def training_rows(self) -> Integers:
        """The training images among which the nearest real image is searched."""
        count = len(self.shards.get_split("train"))
        return evenly_spaced_rows(AllRows(count), MAX_TRAINING_IMAGES)

    @cached_property
    def training_predictions(self) -> Predictions:
        """The classifier's predictions for `training_rows`."""
        return self.cached_predictions("train", self.training_rows)

    def nearest_training_indices(self, features: Floats) -> Integers:
        """Return the index in `training_rows` of the image nearest to each feature vector: [N, F] => [N]."""
        return baselines.nearest_rows(self.space, features, self.training_predictions.features)

    @cached_property
    def nearest_to_target(self) -> Integers:
        """Index in `training_rows` of the image nearest to each target [N]."""
        return self.nearest_training_indices(self.target_predictions.features)

    def training_images(self, indices: Integers) -> Tensor:
        """Return the training images with the given indices in `training_rows`, uint8."""
        return self.shards.get_split("train").decode(self.training_rows[indices])

    def validation_images(self, rows: np.ndarray) -> Tensor:
        """Return validation images, uint8."""
        return self.split.decode(rows)

    def edit(self, images: Tensor, target: Tensor, source: Tensor) -> Tensor:
        target_condition, source_condition = (self.model.encode(features.float()) for features in (target, source))
        return self.editor.edit_uint8(images, self.model.condition_input(target_condition, source_condition))

    def edit_to_features(self, images: Tensor, target: Tensor | Floats, source: Tensor | Floats) -> Tensor:
        """Edit images from source features to target features, as tensors or arrays [N, F]."""
        return self.edit(images, torch.as_tensor(target), torch.as_tensor(source))

    def predict(self, images: Tensor) -> Predictions:
        """Return the classifier's predictions for uint8 images."""
        return predict(self.classifier, images, self.editor.group)

    def real_images(self) -> dict[str, Tensor]:
        return {"nearest_real": self.training_images(self.nearest_to_target)}

    def real_reconstructions(self) -> dict[str, Tensor]:
        return {"nearest_real": self.training_images(self.nearest_training_indices(self.source_predictions.features))}

    def predict_columns(self, images: Mapping[str, Tensor]) -> dict[str, Predictions]:
        num_pairs = len(self.target_predictions)
        return {
            "generator": self.predict(images["generator"]),
            "copy_source": self.source_predictions,
            "shuffled_target": self.predict(images["shuffled_target"]),
            "training_mean": baselines.training_mean_predictions(self.space, num_pairs, self.cache.head),
            "nearest_real": self.training_predictions.select_rows(self.nearest_to_target),
            "target_jpeg": self.predict(baselines.jpeg_round_trip(self.source_images[self.pairs.target_indices])),
            "target_flipped": self.cached_predictions("validation", self.pairs.target_rows, flipped=True),
        }

    def standardize(self, predictions: Predictions) -> Floats:
        return self.standardize_features(predictions.features)

    def standardize_features(self, features: Floats) -> Floats:
        """Standardize raw features [N, F] with the training mean and SD, without constant features => [N, L]."""
        return standardize_features(self.space, features)

    def shared_targets(self) -> Tensor:
        return torch.from_numpy(self.target_predictions.features[:MAX_SHARED_TARGETS])

    @cached_property
    def gallery(self) -> Floats:
        """Features of the gallery images [G, F]."""
        return self.cached_predictions("validation", self.pairs.gallery_rows).features

    def target_subgroups(self) -> list[Subgroup]:
        return [*self.target_class_subgroups(), *self.target_octant_subgroups()]

    def target_class_subgroups(self) -> list[Subgroup]:
        """Split by the predicted class of the target image, or by its label if the classifier predicts no classes."""
        if self.task == "expression" and self.target_predictions.outputs is not None:
            return class_subgroups(self.target_predictions.outputs.argmax(1), self.class_names)
        return class_subgroups(self.split.expression[self.pairs.target_rows], self.shards.classes)

    def target_octant_subgroups(self) -> list[Subgroup]:
        """Split by the predicted valence and arousal of the target image, or by its labels without a prediction."""
        if self.task == "valence_arousal" and self.target_predictions.outputs is not None:
            return octant_subgroups(self.target_predictions.outputs)
        labels = np.stack([self.split.valence, self.split.arousal], 1)[self.pairs.target_rows]
        return octant_subgroups(to_float64(labels))

    def progress_scores(self, predictions: Predictions) -> dict[str, SubgroupScore]:
        source, target, measured = map(
            self.standardize, (self.source_predictions, self.target_predictions, predictions)
        )
        return target_progress_scores(source, target, measured, self.standardize_features(self.gallery))


def measure_feature_agreement(evaluator: FeatureEvaluator, edits: EditResults) -> MetricsByColumn:
    """Measure how close the features of the edited images are to the targets."""
    columns = track_progress(edits.predictions.items(), "faithfulness", len(edits.predictions))
    return {
        name: faithfulness.faithfulness_metrics(
            evaluator.space, evaluator.source_predictions, evaluator.target_predictions, predictions, evaluator.gallery
        )
        for name, predictions in columns
    }
