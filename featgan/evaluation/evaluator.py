"""What the metrics need of a model: the `Evaluator` protocol, its evaluation pairs, and the edits of those pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from featgan.data.shards.split import Split
from featgan.inference.editor import ImageEditor
from featgan.metrics import baselines
from featgan.metrics.bootstrap import Booleans, Estimate, Floats, Integers
from featgan.metrics.predictions import Predictions
from featgan.metrics.preservation import EditSizes
from featgan.metrics.subgroups import Subgroup, SubgroupScore

MetricTable = dict[str, Estimate]
MetricsByColumn = dict[str, MetricTable]
"""The metrics of each column: `generator` first, then the baselines."""

GALLERY_FILLERS = 1000
"""Maximum number of further images for the retrieval gallery."""

MAX_SHARED_TARGETS = 4
MAX_SHARED_TARGET_SOURCES = 64
"""Maximum numbers of targets, and of sources that are edited to each of them, for the diversity metrics."""


@dataclass(frozen=True)
class EvaluationPairs:
    """Validation images as sources; the target of each pair is the condition of another source image."""

    source_rows: Integers  # [N]
    target_indices: Integers  # [N], index of the target image among the sources
    gallery_rows: Integers  # [G], images that are in no pair

    @property
    def target_rows(self) -> Integers:
        return np.take(self.source_rows, self.target_indices)

    @classmethod
    def sample(cls, num_images: int, max_pairs: int, seed: int = 0) -> "EvaluationPairs":
        """Sample at most `max_pairs` pairs of `num_images` images, fixed by a seed; no image is its own target.

        For feature-conditioned models: every image has features, and the images after those of the pairs fill the
        gallery of the retrieval metrics.
        """
        order = np.random.default_rng([seed, num_images]).permutation(num_images)
        source = order[:max_pairs]
        gallery = order[max_pairs : max_pairs + GALLERY_FILLERS]
        return cls(source, baselines.random_derangement(len(source), seed), gallery)

    @classmethod
    def sample_rows(cls, rows: Integers, max_pairs: int, seed: int = 0) -> "EvaluationPairs":
        """Sample at most `max_pairs` pairs of the images in `rows`, without a gallery.

        For label-conditioned models: `rows` are the images that have a label, and there is no retrieval. The order of
        the images differs from that of `sample`. It is kept so that results stay comparable.
        """
        source = np.random.default_rng(seed).permutation(rows)[:max_pairs]
        return cls(source, baselines.random_derangement(len(source), seed), source[:0])


class Evaluator(Protocol):
    """A model with its evaluation pairs and the classifier that predicts its condition.

    The metrics shared by both kinds of models use this protocol. A condition is a row [C] of features or labels.
    """

    editor: ImageEditor
    split: Split

    @property
    def pairs(self) -> EvaluationPairs:
        """Sources and targets."""

    @property
    def task(self) -> str:
        """Kind of the outputs and targets: `expression`, `valence_arousal`, `attributes` or other."""

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the outputs."""

    @property
    def source_images(self) -> Tensor:
        """The source images, uint8 [N, 3, S, S]."""

    @property
    def source_conditions(self) -> Tensor:
        """The conditions of the source images [N, C]."""

    @property
    def source_predictions(self) -> Predictions:
        """The classifier's predictions for the source images."""

    @property
    def target_predictions(self) -> Predictions:
        """The target of each pair, in the form of predictions."""

    @property
    def target_differs(self) -> Booleans | None:
        """Pairs [N] whose target class, octant or attributes differ from the source; None without outputs."""

    def edit(self, images: Tensor, target: Tensor, source: Tensor) -> Tensor:
        """Edit images from their source conditions to target conditions: uint8 [N, 3, S, S], two [N, C] => uint8."""

    def real_images(self) -> dict[str, Tensor]:
        """Baseline => real images [N, 3, S, S] that replace the edits."""

    def real_reconstructions(self) -> dict[str, Tensor]:
        """Baseline => real images [N, 3, S, S] that replace the reconstructions."""

    def predict_columns(self, images: Mapping[str, Tensor]) -> dict[str, Predictions]:
        """Return the classifier's predictions for the images of each column, and for further baselines.

        Empty if there is no classifier.
        """

    def standardize(self, predictions: Predictions) -> Floats:
        """Standardize the features of predictions: [N, F] => [N, L]."""

    def shared_targets(self) -> Tensor:
        """Return up to `MAX_SHARED_TARGETS` conditions [T, C] to which many sources are edited."""

    def target_subgroups(self) -> list[Subgroup]:
        """Return the subgroups of pairs by their target."""

    def progress_scores(self, predictions: Predictions) -> dict[str, SubgroupScore]:
        """Return the scores of progress toward the target that subgroups are measured by, if there are any."""


@dataclass(frozen=True)
class EditResults:
    """The edits of the N evaluation pairs, and the images that replace them in the baselines."""

    images: dict[str, Tensor]  # column => uint8 [N, 3, S, S]
    reconstructed: Tensor  # G(x, c0)
    cycled: Tensor  # G(G(x, c), c0)
    predictions: dict[str, Predictions]  # column => predictions of the classifier; empty without a classifier
    sizes: dict[str, EditSizes]  # column => change from the source


def edit_pairs(evaluator: Evaluator) -> EditResults:
    """Edit every source to its target, to a shuffled target and to its own condition, and edit the edit back."""
    images, source = evaluator.source_images, evaluator.source_conditions
    target = source[evaluator.pairs.target_indices]
    shuffled_target = target[baselines.random_derangement(len(images), 1)]
    with evaluator.editor.show_progress("editing", 4 * len(images)):
        edited = evaluator.edit(images, target, source)
        shuffled_edits = evaluator.edit(images, shuffled_target, source)
        reconstructed = evaluator.edit(images, source, source)
        cycled = evaluator.edit(edited, source, target)
    images_by_column = {
        "generator": edited,
        "copy_source": images,
        "shuffled_target": shuffled_edits,
        **evaluator.real_images(),
    }
    predictions = evaluator.predict_columns(images_by_column)
    sizes = {name: EditSizes.from_images(images, column_images) for name, column_images in images_by_column.items()}
    return EditResults(images_by_column, reconstructed, cycled, predictions, sizes)


@dataclass(frozen=True)
class SameTargetEdits:
    """The first S sources, all edited to the same target, for each of several targets."""

    sources: Tensor  # uint8 [S, 3, H, W]
    edited: list[Tensor]  # for each target, uint8 [S, 3, H, W]


def edit_to_same_target(evaluator: Evaluator) -> SameTargetEdits:
    """Edit the first sources to each of the shared targets."""
    images = evaluator.source_images[:MAX_SHARED_TARGET_SOURCES]
    source = evaluator.source_conditions[:MAX_SHARED_TARGET_SOURCES]
    targets = evaluator.shared_targets()
    with evaluator.editor.show_progress("editing to same targets", len(targets) * len(images)):
        edited = [evaluator.edit(images, target.expand(len(images), -1), source) for target in targets]
    return SameTargetEdits(images, edited)


def prefix_names(metrics_by_column: MetricsByColumn, prefix: str) -> MetricsByColumn:
    """Put a prefix before the name of every metric."""
    return {
        column: {f"{prefix}{name}": estimate for name, estimate in metrics.items()}
        for column, metrics in metrics_by_column.items()
    }
