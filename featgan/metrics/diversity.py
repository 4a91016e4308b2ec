"""Do different sources stay different when the same features are asked of all of them, or become one picture?"""

from collections.abc import Sequence

import numpy as np

from featgan.metrics.bootstrap import NOTHING, Floats, Measure, divide, measure, pair_means


def pairwise_l1(images: Floats) -> Floats:
    """Mean |difference| of every two pictures, as rows [N, P] => [N, N]."""
    return np.stack([np.abs(images - row).mean(1) for row in images])


def pairwise_distance(features: Floats) -> Floats:
    """Euclidean distance of every two rows [N, F] => [N, N]."""
    squares = (features**2).sum(1)
    distances = squares[:, None] + squares[None] - 2 * features @ features.T
    np.fill_diagonal(distances, 0)
    return np.sqrt(np.maximum(distances, 0))


def diversity_table(source: Floats, edited: Sequence[Floats], seed: int = 0) -> dict[str, Measure]:
    """Mean distance of edits of different sources at equal c, and its share of the sources' own.

    `source` [N, N] are the distances between N sources, `edited` one such matrix for each request made of all of them.
    """
    after, count = np.mean(edited, axis=0), len(source)
    if count < 2:
        return {"diversity": NOTHING, "diversity_ratio": NOTHING}
    return {
        "diversity": measure(lambda weights: pair_means(weights, after), count, seed),
        "diversity_ratio": measure(
            lambda weights: divide(pair_means(weights, after), pair_means(weights, source), np.nan), count, seed
        ),
    }
