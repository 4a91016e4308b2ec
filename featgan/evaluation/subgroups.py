"""Metrics by subgroup of targets: class, octant of valence and arousal, and range of a component."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from featgan.evaluation.evaluator import EditResults, Evaluator, MetricsByColumn
from featgan.evaluation.feature_evaluator import FeatureEvaluator
from featgan.metrics.bootstrap import Floats, to_float64
from featgan.metrics.decisions import bootstrap_rmse, counterfactual_validity
from featgan.metrics.predictions import Predictions, project_features
from featgan.metrics.preservation import EditSizes, bootstrap_color_shift, mean_colors
from featgan.metrics.subgroups import (
    RANGE_LEVELS,
    Subgroup,
    SubgroupScore,
    component_scores,
    component_subgroups,
    mean_score,
    subgroup_metrics,
)

Scores = dict[str, dict[str, SubgroupScore]]
"""Column => metric => the function that computes it over the pairs of a subgroup."""


@dataclass(frozen=True)
class SubgroupMetrics:
    """The metrics of one subgroup of pairs."""

    group: str  # class, octant or component K
    name: str
    count: int  # pairs
    metrics_by_column: MetricsByColumn


def measure_subgroups(
    evaluator: Evaluator, edits: EditResults, second_agrees: Mapping[str, Floats] | None = None
) -> list[SubgroupMetrics]:
    """Measure decisions, progress, size and color shift of the edits by target class and octant.

    `second_agrees`: for each column and pair [N], whether the second classifier predicts the target class.
    """
    scores: Scores = {
        column: {
            **evaluator.progress_scores(predictions),
            **decision_scores(evaluator.task, evaluator.source_predictions, evaluator.target_predictions, predictions),
        }
        for column, predictions in edits.predictions.items()
    }
    for column, values in (second_agrees or {}).items():
        scores.setdefault(column, {})["second_classifier_agreement"] = mean_score(values)
    colors = mean_colors(evaluator.source_images)
    stds = colors.std(0)
    for column, sizes in edits.sizes.items():
        scores.setdefault(column, {}).update(image_scores(sizes, stds))
    if "target_flipped" in scores:
        # The color difference of source and target images shows how much color real images with these features differ.
        color_change = colors[evaluator.pairs.target_indices] - colors
        scores["target_flipped"]["color_shift"] = color_shift_score(color_change, stds)
    return [measure_subgroup(subgroup, scores) for subgroup in evaluator.target_subgroups()]


def measure_subgroup(subgroup: Subgroup, scores: Mapping[str, Mapping[str, SubgroupScore]]) -> SubgroupMetrics:
    metrics_by_column = {column: subgroup_metrics(subgroup, column_scores) for column, column_scores in scores.items()}
    return SubgroupMetrics(subgroup.group, subgroup.name, int(subgroup.pairs.sum()), metrics_by_column)


def decision_scores(
    kind: str, source: Predictions, target: Predictions, predictions: Predictions
) -> dict[str, SubgroupScore]:
    """Return the score of validity for classes, of the distance to the target for valence and arousal, else none."""
    if source.outputs is None or target.outputs is None or predictions.outputs is None:
        return {}
    if kind == "expression":
        source_labels, target_labels, predicted_labels = (
            item.outputs.argmax(1) for item in (source, target, predictions) if item.outputs is not None
        )
        return {"validity": mean_score(counterfactual_validity(source_labels, target_labels, predicted_labels))}
    if kind == "valence_arousal":
        squares = ((target.outputs - predictions.outputs) ** 2).sum(1)
        return {"valence_arousal_rmse": lambda pairs: bootstrap_rmse(squares[pairs], 0)}
    return {}


def image_scores(sizes: EditSizes, stds: Floats) -> dict[str, SubgroupScore]:
    """Return the scores of size, low-frequency share and color shift of the edits."""
    return {
        "edit_l1": mean_score(sizes.l1),
        "edit_low_frequency_share": mean_score(sizes.low_frequency_share),
        "color_shift": color_shift_score(sizes.color_change, stds),
    }


def color_shift_score(color_change: Floats, stds: Floats) -> SubgroupScore:
    return lambda pairs: bootstrap_color_shift(color_change[pairs], stds)


def measure_component_subgroups(
    evaluator: FeatureEvaluator, edits: EditResults, num_components: int
) -> list[SubgroupMetrics]:
    """Measure the progress of each component alone, by the range that its target value is in."""
    space = evaluator.space
    edges = np.stack([to_float64(space.quantile(level)) for level in RANGE_LEVELS], 1)[:num_components]

    def project(predictions: Predictions) -> Floats:
        return project_features(space, predictions.features)[:, :num_components]

    source, target = project(evaluator.source_predictions), project(evaluator.target_predictions)
    measured_by_column = {column: project(predictions) for column, predictions in edits.predictions.items()}
    subgroups = []
    for subgroup in component_subgroups(target, edges):
        component = int(subgroup.group.removeprefix("component ")) - 1
        scores = {
            column: component_scores(source, target, measured, component)
            for column, measured in measured_by_column.items()
        }
        subgroups.append(measure_subgroup(subgroup, scores))
    return subgroups
