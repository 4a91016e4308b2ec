"""Faithfulness metrics: does the edit reach the target in the classifier's feature space?

x is the source image, c0 = f(x) its features, c the target features, and c' = f(G(x, c)) the measured features. All are
standardized with the training mean and standard deviation, without features that are constant on the training set.
"""

import numpy as np

from featgan.features.space import FeatureSpace
from featgan.metrics.bootstrap import (
    Estimate,
    Floats,
    Integers,
    bootstrap_many,
    bootstrap_mean,
    bootstrap_median,
    bootstrap_ratio,
    bootstrap_statistic,
    safe_divide,
)
from featgan.metrics.predictions import Predictions, project_features, standardize_features

GALLERY_SIZE = 1000
"""Number of vectors in the retrieval gallery, including the target."""

NUM_REPORTED_COMPONENTS = 10
"""Number of leading principal components that are reported separately."""


def target_progress_and_drift(source: Floats, target: Floats, measured: Floats) -> tuple[Floats, Floats]:
    """Compute the target progress [N] and the off-target drift [N] of each pair from three [N, L].

    progress = <c' - c0, c - c0> / |c - c0|^2: 0 is a copy of the source, 1 is the target. drift = the length of the
    part of c' - c0 that is orthogonal to c - c0, divided by |c - c0|. NaN if the target equals the source.
    """
    target_change, edit_change = target - source, measured - source
    squares = (target_change**2).sum(1)
    progress = safe_divide((edit_change * target_change).sum(1), squares, np.nan)
    drift = safe_divide(
        np.linalg.norm(edit_change - progress[:, None] * target_change, axis=1), np.sqrt(squares), np.nan
    )
    return progress, drift


def weighted_covariances(weights: Floats, first: Floats, second: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Compute the difference of means, both population variances and the covariance, each [D, L].

    Weights [D, N], two [N, L].
    """
    # Centering first makes the one-pass variance of a constant column exactly 0.
    origin = first.mean(0)
    first, second = first - origin, second - origin
    mean_first, mean_second = weights @ first, weights @ second
    variance_first = np.maximum(weights @ first**2 - mean_first**2, 0)
    variance_second = np.maximum(weights @ second**2 - mean_second**2, 0)
    covariance = weights @ (first * second) - mean_first * mean_second
    return mean_first - mean_second, variance_first, variance_second, covariance


def weighted_concordance(weights: Floats, target: Floats, measured: Floats) -> Floats:
    """Compute Lin's concordance correlation (1989) of each dimension: weights [D, N], two [N, L] => [D, L].

    Values are in [-1, 1], with population variances; 0 if both are constant and equal.
    """
    mean_difference, variance_target, variance_measured, covariance = weighted_covariances(weights, target, measured)
    return safe_divide(2 * covariance, variance_target + variance_measured + mean_difference**2)


def weighted_r2(weights: Floats, target: Floats, measured: Floats) -> Floats:
    """Compute the variance-weighted R2 over all dimensions: weights [D, N], two [N, L] => [D].

    1 is perfect, and 0 is as good as the mean. This is scikit-learn's `r2_score(..., multioutput="variance_weighted")`
    for many weightings at once; 0 without variance.
    """
    centered = target - target.mean(0)
    residual = weights @ ((target - measured) ** 2).sum(1)
    total = weights @ (centered**2).sum(1) - ((weights @ centered) ** 2).sum(1)
    return np.where(total > 1e-12, 1 - safe_divide(residual, total), 0.0)


def centered_cosine(target: Floats, measured: Floats) -> Floats:
    """Compute the cosine between standardized vectors, centered on the training mean: two [N, L] => [N] in [-1, 1].

    0 if one of them is the mean.
    """
    lengths = np.linalg.norm(target, axis=1) * np.linalg.norm(measured, axis=1)
    return safe_divide((target * measured).sum(1), lengths)


def varying_columns(target: Floats) -> Integers:
    """Return the columns of [N, L] that vary between rows; agreement on a constant target is undefined."""
    return np.flatnonzero(np.ptp(target, axis=0) > 1e-9)


def retrieval_ranks(measured: Floats, target: Floats, gallery: Floats, target_rows: Integers | None = None) -> Floats:
    """Compute the rank of c in a gallery by distance to c': [N, L], [N, L], [G, L] => [N]; 1 is the nearest.

    Ties get the middle rank. `target_rows` [N] are the gallery rows of the targets, which are not compared with
    themselves; -1 (or None) if the target is not in the gallery. Another row with equal features is a tie.
    """
    target_distances = ((measured - target) ** 2).sum(1)
    squares = (measured**2).sum(1)[:, None] + (gallery**2).sum(1)[None]
    distances = squares - 2 * measured @ gallery.T
    # The expanded form has rounding errors, so a tie is equality up to rounding.
    margin = 1e-10 * (1 + squares)
    nearer = (distances < target_distances[:, None] - margin).astype(np.float64)
    ties = (np.abs(distances - target_distances[:, None]) <= margin).astype(np.float64)
    if target_rows is not None:
        in_gallery = np.flatnonzero(target_rows >= 0)
        nearer[in_gallery, target_rows[in_gallery]] = 0
        ties[in_gallery, target_rows[in_gallery]] = 0
    return np.sum(nearer + ties / 2, axis=1) + 1


def gallery_ranks(
    measured: Floats, target: Floats, distractors: Floats | None = None, size: int = GALLERY_SIZE
) -> Floats:
    """Compute ranks [N] with the targets of the pairs as the gallery, in blocks of `size` pairs.

    A shorter last block is filled with earlier targets, then with `distractors` [O, L]: vectors of images that are not
    a target. If there are fewer than `size` vectors in total, the gallery is smaller.
    """
    pool = target if distractors is None else np.concatenate([target, distractors])
    ranks = []
    for start in range(0, len(target), size):
        block = slice(start, min(start + size, len(target)))
        length = block.stop - block.start
        filler = np.concatenate([pool[:start], pool[block.stop :]])[: size - length]
        gallery = np.concatenate([target[block], filler])
        ranks.append(retrieval_ranks(measured[block], target[block], gallery, np.arange(length)))
    return np.concatenate(ranks) if ranks else np.zeros(0)


def target_progress_metrics(source: Floats, target: Floats, measured: Floats, seed: int = 0) -> dict[str, Estimate]:
    """Compute target progress and off-target drift from three standardized [N, L]: mean, median and pooled.

    Pairs with a small target change dominate the mean. They do not dominate `target_progress_pooled`, which is the sum
    of products divided by the sum of squares.
    """
    progress, drift = target_progress_and_drift(source, target, measured)
    target_change = target - source
    products = ((measured - source) * target_change).sum(1)
    return {
        "target_progress": bootstrap_mean(progress, seed),
        "target_progress_median": bootstrap_median(progress, seed),
        "target_progress_pooled": bootstrap_ratio(products, (target_change**2).sum(1), seed),
        "off_target_drift": bootstrap_mean(drift, seed),
        "off_target_drift_median": bootstrap_median(drift, seed),
    }


def vector_agreement_metrics(target: Floats, measured: Floats, seed: int = 0) -> dict[str, Estimate]:
    """Compute CCC (mean over dimensions with a varying target), variance-weighted R2, centered cosine: two [N, L]."""
    varying_dims = varying_columns(target)

    def mean_concordance(weights: Floats) -> Floats:
        per_dimension = weighted_concordance(weights, target[:, varying_dims], measured[:, varying_dims])
        return np.sum(per_dimension, axis=1) / max(len(varying_dims), 1)

    count = len(target)
    return {
        "ccc": bootstrap_statistic(mean_concordance, count, seed),
        "r2": bootstrap_statistic(lambda weights: weighted_r2(weights, target, measured), count, seed),
        "centered_cosine": bootstrap_mean(centered_cosine(target, measured), seed),
    }


def component_agreement_metrics(target: Floats, measured: Floats, seed: int = 0) -> dict[str, Estimate]:
    """Compute the agreement in whitened components, two [N, K]: CCC of the leading ones; CCC, R2, cosine over all."""
    num_reported = min(NUM_REPORTED_COMPONENTS, target.shape[1])
    estimates = bootstrap_many(
        lambda weights: weighted_concordance(weights, target, measured)[:, :num_reported], len(target), seed
    )
    table = {f"component_{index:02d}_ccc": estimate for index, estimate in enumerate(estimates, 1)}
    return table | {
        f"components_{name}": estimate for name, estimate in vector_agreement_metrics(target, measured, seed).items()
    }


def retrieval_metrics(
    measured: Floats, target: Floats, distractors: Floats | None = None, size: int = GALLERY_SIZE, seed: int = 0
) -> dict[str, Estimate]:
    """Compute the share of pairs whose target is the nearest, or one of the five nearest, and the mean reciprocal rank.

    The size of the gallery is in `retrieval_gallery_size`, not in the names.
    """
    ranks = gallery_ranks(measured, target, distractors, size)
    gallery_size = float(min(size, len(target) + (0 if distractors is None else len(distractors))))
    return {
        "retrieval_top1": bootstrap_mean(ranks <= 1, seed),
        "retrieval_top5": bootstrap_mean(ranks <= 5, seed),
        "retrieval_mrr": bootstrap_mean(1 / ranks, seed),
        "retrieval_gallery_size": Estimate(gallery_size, gallery_size, gallery_size, len(target)),
    }


def faithfulness_metrics(
    space: FeatureSpace,
    source: Predictions,
    target: Predictions,
    measured: Predictions,
    gallery: Floats | None = None,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Compute all faithfulness metrics of N pairs in feature space.

    `source`, `target` and `measured` have raw features [N, F]. `gallery` [G, F] has features of other real images, none
    of them a target, that fill the retrieval gallery up to GALLERY_SIZE.
    """
    source_vectors, target_vectors, measured_vectors = (
        standardize_features(space, predictions.features) for predictions in (source, target, measured)
    )
    distractors = None if gallery is None else standardize_features(space, gallery)
    return {
        **target_progress_metrics(source_vectors, target_vectors, measured_vectors, seed),
        **vector_agreement_metrics(target_vectors, measured_vectors, seed),
        **component_agreement_metrics(
            project_features(space, target.features), project_features(space, measured.features), seed
        ),
        **retrieval_metrics(measured_vectors, target_vectors, distractors, seed=seed),
    }
