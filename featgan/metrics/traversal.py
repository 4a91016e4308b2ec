"""Traversal metrics: does a sweep of one principal component change that component, linearly, and no other?

Components are whitened, so a unit is one standard deviation (SD) on the training set. A sweep sets each of K components
of each of N images to S values; the others stay as in the source. M >= K components of the edited images are measured.
The swept components are the first K of them, or those given by `swept`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import rankdata

from featgan.metrics.bootstrap import (
    Estimate,
    Floats,
    bootstrap_column_means,
    bootstrap_mean,
    bootstrap_statistic,
    safe_divide,
    to_float64,
)
from featgan.metrics.faithfulness import vector_agreement_metrics

MIN_MONOTONE_CORRELATION = 0.9
"""Minimum rank correlation of a monotone sweep."""

MIN_MOVEMENT = 1e-4
"""Smaller changes along a sweep, in SD, count as no movement: float32 rounding in the classifier causes them."""


def zero_rounding_noise(measured: Floats) -> Floats:
    """Make sweeps along axis 2 of [N, K, S, ...] constant if their values differ only by rounding."""
    is_moving = np.ptp(measured, axis=2, keepdims=True) > MIN_MOVEMENT
    return np.where(is_moving, measured, measured[:, :, :1])


def pearson_correlations(first: Floats, second: Floats) -> Floats:
    """Compute the Pearson correlation along the last axis: two [..., S] => [...]; 0 if one is constant."""
    first = first - first.mean(-1, keepdims=True)
    second = second - second.mean(-1, keepdims=True)
    lengths = np.sqrt((first**2).sum(-1) * (second**2).sum(-1))
    return np.where(lengths > 1e-12, safe_divide((first * second).sum(-1), lengths), 0.0)


def spearman_correlation(requested: Floats, measured: Floats) -> Floats:
    """Compute Spearman's rank correlation along the last axis, ties with middle rank: two [..., S] => [...].

    Values are in [-1, 1]; 0 if the measured values are constant. Values that differ only by rounding are ties.
    """
    return pearson_correlations(rankdata(requested, axis=-1), rankdata(np.round(measured / MIN_MOVEMENT), axis=-1))


def linear_fit_r2(requested: Floats, measured: Floats) -> Floats:
    """Compute R2 of a straight line along the last axis: two [..., S] => [...] in [0, 1]; 0 if constant."""
    return pearson_correlations(requested, measured) ** 2


def sweep_slopes(requested: Floats, measured: Floats) -> Floats:
    """Compute the least-squares slope of each measured value: requested [N, K, S], [N, K, S, M] => [N, K, M]."""
    measured = zero_rounding_noise(measured)
    measured = measured - measured[:, :, :1]  # the slope of a constant sweep is then exactly 0
    offsets = requested - requested.mean(-1, keepdims=True)
    squares = (offsets**2).sum(-1)
    assert (squares > 0).all(), "a sweep needs at least two different values"
    return safe_divide(np.einsum("nks,nksm->nkm", offsets, measured), squares[..., None])


def crosstalk_matrix(requested: Floats, measured: Floats) -> Floats:
    """Compute the mean change of measured component j per requested unit of component k: => [K, M], in SD."""
    return np.mean(sweep_slopes(broadcast_requested(requested, measured), measured), axis=0)


def broadcast_requested(requested: Floats, measured: Floats) -> Floats:
    """Broadcast requested values [S], [K, S] or [N, K, S] to [N, K, S], for measured [N, K, S, M]."""
    return np.broadcast_to(requested, measured.shape[:3])


def weighted_dominance(weights: Floats, slopes: Floats, swept: Sequence[int]) -> Floats:
    """Compute sum |M_kk| / sum |M_kj| of the weighted mean matrix: weights [D, N], slopes [N, K, M] => [D].

    0 if nothing changes.
    """
    num_images, num_swept, num_measured = slopes.shape
    matrices = np.abs(weights @ slopes.reshape(num_images, -1)).reshape(-1, num_swept, num_measured)
    diagonal = matrices[:, np.arange(num_swept), list(swept)].sum(1)
    return safe_divide(diagonal, matrices.sum((1, 2)))


def per_component_metrics(rhos: Floats, slopes: Floats, linear_r2: Floats, seed: int = 0) -> dict[str, Estimate]:
    """Compute monotonicity, slope and linearity of each component from three [N, K]; components start at 1."""
    table: dict[str, Estimate] = {}
    for name, values in (("monotonicity", rhos), ("slope", slopes), ("linearity", linear_r2)):
        estimates = enumerate(bootstrap_column_means(values, seed), 1)
        table |= {f"component_{index:02d}_{name}": estimate for index, estimate in estimates}
    return table


def traversal_metrics(
    requested: Floats, measured: Floats, swept: Sequence[int] | None = None, seed: int = 0
) -> dict[str, Estimate]:
    """Compute all traversal metrics, over all components and by component.

    `requested`: whitened values [S], [K, S] or [N, K, S]. `measured`: whitened components [N, K, S, M]. `swept`: the
    measured column of each swept component, by default the first K.
    """
    measured = zero_rounding_noise(to_float64(measured))
    requested = broadcast_requested(to_float64(requested), measured)
    columns = list(range(measured.shape[1])) if swept is None else list(swept)
    # Indexing with two arrays moves their axis to the front.
    swept_values = measured[:, np.arange(measured.shape[1]), :, columns].transpose(1, 0, 2)
    rhos, linear_r2 = spearman_correlation(requested, swept_values), linear_fit_r2(requested, swept_values)
    slopes = sweep_slopes(requested, measured)
    swept_slopes = slopes[:, np.arange(len(columns)), columns]
    return {
        "monotonicity": bootstrap_mean(rhos.mean(1), seed),
        "monotone_share": bootstrap_mean((rhos >= MIN_MONOTONE_CORRELATION).mean(1), seed),
        "slope": bootstrap_mean(swept_slopes.mean(1), seed),
        "linearity": bootstrap_mean(linear_r2.mean(1), seed),
        "diagonal_dominance": bootstrap_statistic(lambda w: weighted_dominance(w, slopes, columns), len(slopes), seed),
        **per_component_metrics(rhos, swept_slopes, linear_r2, seed),
    }


def projection_metrics(
    requested: Mapping[int, Floats], measured: Mapping[int, Floats], seed: int = 0
) -> dict[str, Estimate]:
    """Compute distance, CCC, R2 and cosine if only the first k components of the source are kept, for each k.

    Both maps have standardized [N, L] by k. The distance is the root mean square over dimensions, averaged over images.
    For k = 0 every target is the training mean, so only the distance is defined.
    """
    table: dict[str, Estimate] = {}
    for count in sorted(requested):
        target, result = requested[count], measured[count]
        metrics = {"distance": bootstrap_mean(np.sqrt(((target - result) ** 2).mean(1)), seed)}
        metrics |= vector_agreement_metrics(target, result, seed) if count else {}
        table |= {f"projection_{count:02d}_{name}": estimate for name, estimate in metrics.items()}
    return table
