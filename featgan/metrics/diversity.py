"""Diversity metrics: do edits of different sources toward the same target stay different?"""

from collections.abc import Sequence

import numpy as np

from featgan.metrics.bootstrap import NO_DATA, Estimate, Floats, bootstrap_statistic, safe_divide, weighted_pair_means


def pairwise_l1(images: Floats) -> Floats:
    """Compute the mean absolute difference of every two images, given as rows: [N, P] => [N, N]."""
    return np.stack([np.abs(images - row).mean(1) for row in images])


def pairwise_distance(features: Floats) -> Floats:
    """Compute the Euclidean distance of every two rows: [N, F] => [N, N]."""
    squares = (features**2).sum(1)
    distances = squares[:, None] + squares[None] - 2 * features @ features.T
    np.fill_diagonal(distances, 0)
    return np.sqrt(np.maximum(distances, 0))


def diversity_metrics(source: Floats, edited: Sequence[Floats], seed: int = 0) -> dict[str, Estimate]:
    """Compute the mean distance between edits with an equal target, and its ratio to that between the sources.

    `source` [N, N] are the distances between N sources; `edited` has one such matrix for each target.
    """
    mean_edited, count = np.mean(edited, axis=0), len(source)
    if count < 2:
        return {"diversity": NO_DATA, "diversity_ratio": NO_DATA}
    return {
        "diversity": bootstrap_statistic(lambda weights: weighted_pair_means(weights, mean_edited), count, seed),
        "diversity_ratio": bootstrap_statistic(
            lambda weights: safe_divide(
                weighted_pair_means(weights, mean_edited), weighted_pair_means(weights, source), np.nan
            ),
            count,
            seed,
        ),
    }
