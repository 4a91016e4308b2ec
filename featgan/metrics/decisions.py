"""Decision metrics: does the classifier predict the target after the edit, and how many components suffice?"""

from collections.abc import Mapping, Sequence

import numpy as np

from featgan.metrics.bootstrap import (
    Booleans,
    Estimate,
    Floats,
    Integers,
    bootstrap_mean,
    bootstrap_statistic,
    safe_divide,
)
from featgan.metrics.faithfulness import weighted_concordance, weighted_covariances
from featgan.metrics.predictions import Predictions

NUM_OCTANTS = 8
"""Number of sectors of the valence-arousal circle; octant 1: angles from 0° at valence 1 to 45°, toward arousal 1."""


def macro_f1(target: Integers, predicted: Integers, seed: int = 0) -> Estimate:
    """Estimate the F1 score averaged over the target classes, in [0, 1]: two [N] of labels."""
    is_target, is_predicted = (
        np.equal.outer(labels, np.unique(target)).astype(np.float64) for labels in (target, predicted)
    )

    def score(weights: Floats) -> Floats:
        # 2 TP / (2 TP + FP + FN) of every class, for all resamples at once.
        return safe_divide(2 * (weights @ (is_target * is_predicted)), weights @ (is_target + is_predicted)).mean(1)

    return bootstrap_statistic(score, len(target), seed)


def decision_differs(kind: str, source: Predictions, target: Predictions) -> Booleans | None:
    """Return the pairs [N] whose target decision differs from the source decision; None without decisions.

    A decision is the class with the largest output, the octant of valence and arousal, or the set of attributes.
    """
    if source.outputs is None or target.outputs is None:
        return None
    if kind == "expression":
        return np.asarray(source.outputs.argmax(1) != target.outputs.argmax(1))
    if kind == "valence_arousal":
        return np.asarray(octant_indices(source.outputs) != octant_indices(target.outputs))
    if kind == "attributes":
        return np.asarray(((source.outputs > 0) != (target.outputs > 0)).any(1))
    return None


def counterfactual_validity(source: Integers, target: Integers, predicted: Integers) -> Floats:
    """Return 1 if the decision became the target, else 0; NaN if the target equals the source: three [N] => [N]."""
    return np.where(source == target, np.nan, (predicted == target).astype(np.float64))


def label_metrics(
    source: Integers, target: Integers, predicted: Integers, class_names: Sequence[str] = (), seed: int = 0
) -> dict[str, Estimate]:
    """Compute the agreement of predicted labels with target labels, overall and by class, from three [N].

    Pairs with a negative (unknown) target label are excluded.
    """
    known = target >= 0
    source, target, predicted = source[known], target[known], predicted[known]
    is_correct = (target == predicted).astype(np.float64)
    table = {
        "label_agreement": bootstrap_mean(is_correct, seed),
        "label_macro_f1": macro_f1(target, predicted, seed),
        "validity": bootstrap_mean(counterfactual_validity(source, target, predicted), seed),
        "flip_rate": flip_rate(source, predicted, seed),
    }
    for label in np.unique(target).tolist():
        name = class_names[label] if label < len(class_names) else str(label)
        table[f"label_agreement_{name}"] = bootstrap_mean(is_correct[target == label], seed)
    return table


def octant_indices(points: Floats) -> Integers:
    """Return the sector of the valence-arousal circle, 0 to 7: [N, 2] => [N]."""
    angles = np.arctan2(points[:, 1], points[:, 0]) % (2 * np.pi)
    return np.minimum(angles // (2 * np.pi / NUM_OCTANTS), NUM_OCTANTS - 1).astype(np.int64)


def regression_metrics(names: Sequence[str], target: Floats, measured: Floats, seed: int = 0) -> dict[str, Estimate]:
    """Compute CCC, Pearson correlation, RMSE and sign agreement of each output: two [N, len(names)]."""
    table: dict[str, Estimate] = {}
    for index, name in enumerate(names):
        known = np.isfinite(target[:, index])
        pair = target[known, index], measured[known, index]
        table |= {
            f"{name}_{statistic}": estimate for statistic, estimate in output_regression_metrics(*pair, seed).items()
        }
    return table


def output_regression_metrics(target: Floats, measured: Floats, seed: int = 0) -> dict[str, Estimate]:
    """Compute the regression metrics of one output: two [N]."""
    first, second, count = target[:, None], measured[:, None], len(target)

    def pearson(weights: Floats) -> Floats:
        _, variance_first, variance_second, covariance = weighted_covariances(weights, first, second)
        return safe_divide(covariance, np.sqrt(variance_first * variance_second))[:, 0]

    return {
        "ccc": bootstrap_statistic(lambda weights: weighted_concordance(weights, first, second)[:, 0], count, seed),
        "pearson": bootstrap_statistic(pearson, count, seed),
        "rmse": bootstrap_statistic(lambda weights: np.sqrt(weights @ (target - measured) ** 2), count, seed),
        "sign_agreement": bootstrap_mean((np.sign(target) == np.sign(measured)).astype(np.float64), seed),
    }


def valence_arousal_metrics(target: Floats, measured: Floats, seed: int = 0) -> dict[str, Estimate]:
    """Compute the metrics of both outputs [N, 2], and the RMSE by octant of the target.

    Averages can hide errors in rare octants.
    """
    table = regression_metrics(("valence", "arousal"), target, measured, seed)
    known = np.isfinite(target).all(1)
    squares = ((target[known] - measured[known]) ** 2).sum(1)
    sectors = octant_indices(target[known])
    for sector in np.unique(sectors).tolist():
        table[f"valence_arousal_rmse_octant_{sector + 1}"] = bootstrap_rmse(squares[sectors == sector], seed)
    return table


def bootstrap_rmse(squares: Floats, seed: int) -> Estimate:
    """Estimate the root of the mean of [N] squares."""
    return bootstrap_statistic(lambda weights: np.sqrt(weights @ squares), len(squares), seed)


def attribute_metrics(
    source: Booleans, target: Booleans, predicted: Booleans, names: Sequence[str] = (), seed: int = 0
) -> dict[str, Estimate]:
    """Compute attribute metrics from the source, target and predicted attributes, three [N, A].

    Agreement over all attributes; `validity` over the attributes that should change; `attributes_kept` over the others;
    agreement by attribute. Each image has the same weight, whatever its number of changes.
    """
    is_correct, is_changed = target == predicted, source != target
    table = {"attribute_agreement": bootstrap_mean(is_correct.mean(1), seed)}
    for name, selected in (("validity", is_changed), ("attributes_kept", ~is_changed)):
        count = selected.sum(1)
        share = np.divide((is_correct & selected).sum(1), count, out=np.full(len(count), np.nan), where=count > 0)
        table[name] = bootstrap_mean(share, seed)
    for index, name in enumerate(names):
        table[f"attribute_agreement_{name}"] = bootstrap_mean(is_correct[:, index].astype(np.float64), seed)
    return table


def decision_metrics(
    task: str,
    source: Predictions,
    target: Predictions,
    measured: Predictions,
    names: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, Estimate]:
    """Compute the decision metrics for a task: `expression`, `valence_arousal`, `attributes` or `factors`.

    `target` has the classifier's outputs for the images whose features are the targets. `names` are the names of the
    classes, attributes or factors. The result is empty for other tasks and if outputs are unknown.
    """
    if source.outputs is None or target.outputs is None or measured.outputs is None:
        return {}
    if task == "expression":
        labels = [item.outputs.argmax(1) for item in (source, target, measured) if item.outputs is not None]
        return label_metrics(labels[0], labels[1], labels[2], names, seed)
    if task == "valence_arousal":
        return valence_arousal_metrics(target.outputs, measured.outputs, seed)
    if task == "attributes":
        return attribute_metrics(source.outputs > 0, target.outputs > 0, measured.outputs > 0, names, seed)
    if task == "factors":
        return regression_metrics(names, target.outputs, measured.outputs, seed)
    return {}


def sufficiency_metrics(
    source: Integers, target: Integers, predicted: Mapping[int, Integers], seed: int = 0
) -> dict[str, Estimate]:
    """Compute the share of images whose decision becomes the target if only the top k components are set, for each k.

    `predicted` maps k to decisions [N]; pairs whose target equals the source are excluded.
    """
    return {
        f"sufficiency_at_{count}": bootstrap_mean(counterfactual_validity(source, target, labels), seed)
        for count, labels in sorted(predicted.items())
    }


def flip_rate(source: Integers, predicted: Integers, seed: int = 0) -> Estimate:
    """Estimate the share of images whose decision differs from the source's decision: two [N]."""
    return bootstrap_mean((source != predicted).astype(np.float64), seed)
