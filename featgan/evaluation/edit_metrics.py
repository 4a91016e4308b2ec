"""Metrics of the edits of the evaluation pairs, for feature-conditioned and label-conditioned models alike."""

import numpy as np
from torch import Tensor

from featgan.evaluation.evaluator import EditResults, Evaluator, MetricsByColumn, SameTargetEdits
from featgan.metrics import baselines, decisions, preservation, realism
from featgan.metrics.bootstrap import Floats, to_float64
from featgan.metrics.diversity import diversity_metrics, pairwise_l1
from featgan.metrics.inception import Inception
from featgan.metrics.preservation import ImageDistance, to_float_images

INCEPTION_COLUMNS = ("generator", "copy_source", "nearest_real")
"""Columns for which Inception features are computed; they take most of the time."""


def measure_decisions(evaluator: Evaluator, edits: EditResults) -> MetricsByColumn:
    """Measure how often the predictions for the edited images are the targets."""
    kind, names = evaluator.task, evaluator.class_names
    return {
        column: decisions.decision_metrics(
            kind, evaluator.source_predictions, evaluator.target_predictions, predictions, names
        )
        for column, predictions in edits.predictions.items()
    }


def measure_preservation(
    evaluator: Evaluator, edits: EditResults, lpips: ImageDistance | None = None
) -> MetricsByColumn:
    """Measure reconstructions of the source, edits back to the source, and the size of the edits, in pixels."""
    images, target_differs = evaluator.source_images, evaluator.target_differs
    reconstructions = {"generator": (edits.reconstructed, edits.cycled), "copy_source": (images, images)}
    reconstructions |= {name: (real, real) for name, real in evaluator.real_reconstructions().items()}
    metrics = {}
    for column, column_images in edits.images.items():
        reconstructed, cycled = reconstructions.get(column, (None, None))
        metrics[column] = preservation.preservation_metrics(
            images, reconstructed, cycled, column_images, target_differs, lpips, edits.sizes[column]
        )
    jpeg = baselines.jpeg_round_trip(images)
    metrics["source_jpeg"] = preservation.preservation_metrics(images, jpeg, None, jpeg, target_differs, lpips)
    return metrics


def measure_realism(evaluator: Evaluator, edits: EditResults) -> MetricsByColumn:
    """Measure distances of edited images to real images in the classifier's features."""
    if not edits.predictions:
        return {}
    half = realism.second_half(len(evaluator.source_predictions))
    features_by_column = {
        column: evaluator.standardize(predictions)[half] for column, predictions in edits.predictions.items()
    }
    return realism.realism_metrics(evaluator.standardize(evaluator.source_predictions), features_by_column)


def measure_inception(inception: Inception | None, edits: EditResults) -> MetricsByColumn:
    """Measure the same distances in Inception features; nothing without Inception weights."""
    if inception is None:
        return {}
    sources = edits.images["copy_source"]
    half, real = realism.second_half(len(sources)), inception(sources)
    features_by_column = {
        column: real[half] if column == "copy_source" else inception(edits.images[column][half])
        for column in INCEPTION_COLUMNS
        if column in edits.images
    }
    return realism.realism_metrics(real, features_by_column, space="inception")


def measure_diversity(same_target_edits: SameTargetEdits) -> MetricsByColumn:
    """Measure in pixels whether edits of different sources to the same target stay different."""
    edited_distances = [pixel_distances(images) for images in same_target_edits.edited]
    return diversity_by_column(pixel_distances(same_target_edits.sources), edited_distances)


def pixel_distances(images: Tensor) -> Floats:
    """Return the mean absolute difference of every two images [N, 3, S, S] with values in [-1, 1] => [N, N]."""
    return pairwise_l1(to_float64(to_float_images(images).flatten(1)))


def diversity_by_column(source: Floats, edited: list[Floats]) -> MetricsByColumn:
    """Return the diversity metrics for distances [N, N] of the sources, and of their edits to each target.

    The nearest real image to a target is one image for all sources, so the distances of `nearest_real` are 0.
    """
    return {
        "generator": diversity_metrics(source, edited),
        "copy_source": diversity_metrics(source, [source]),
        "nearest_real": diversity_metrics(source, [np.zeros_like(source)]),
    }
