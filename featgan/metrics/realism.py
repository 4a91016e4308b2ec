"""Realism metrics: Frechet distance (Heusel et al. 2017) and kernel distance between edits and real images.

d^2 = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2), m and S the mean and covariance of each set; KID (Binkowski
et al. 2018) is the squared maximum mean discrepancy with the kernel (<x, y> / F + 1)^3, unbiased. Both are computed in
any feature space of F dimensions.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from featgan.metrics.bootstrap import NO_DATA, NUM_RESAMPLES, Estimate, Floats, resample_weights, weighted_pair_means

MAX_LOW_DIM_FEATURES = 256
"""Above this number of features, intervals use few resamples and baselines get none: a resample takes seconds."""

NUM_RESAMPLES_HIGH_DIM = 20
"""Number of resamples above MAX_LOW_DIM_FEATURES features."""

MAX_KID_IMAGES = 4000
"""Maximum number of images of each set in the kernel distance, whose cost is quadratic."""

RealismSpace = Literal["classifier", "inception"]

REALISM_METRIC_NAMES: dict[RealismSpace, tuple[str, str]] = {
    "classifier": ("frechet_distance", "kid"),
    "inception": ("fid", "inception_kid"),
}
"""Names of the Frechet distance and of the kernel distance in each feature space."""


def mean_and_covariance(features: Floats, weights: Floats | None = None) -> tuple[Floats, Floats]:
    """Compute the mean [F] and the covariance [F, F] (divided by N - 1) of [N, F] or of a resample, weights [N]."""
    mean, factor = mean_and_covariance_factor(features, weights)
    return mean, factor.T @ factor


def mean_and_covariance_factor(features: Floats, weights: Floats | None = None) -> tuple[Floats, Floats]:
    """Compute the mean [F] and a factor A [N, F] of the covariance A^T A."""
    count = len(features)
    weights = np.full(count, 1 / count) if weights is None else weights
    mean = weights @ features
    return mean, (features - mean) * np.sqrt(weights * count / (count - 1))[:, None]


def matrix_sqrt(matrix: Floats) -> Floats:
    """Compute the square root of a positive semidefinite matrix; negative eigenvalues (rounding) are set to 0."""
    values, vectors = np.linalg.eigh(matrix)
    return np.matmul(vectors * np.sqrt(np.maximum(values, 0)), vectors.T)


def gaussian_frechet_distance(
    mean_first: Floats, covariance_first: Floats, mean_second: Floats, covariance_second: Floats
) -> float:
    """Compute the squared Frechet distance of two Gaussians, at least 0; covariances may be singular."""
    root = matrix_sqrt(covariance_first)
    # The product under the trace is similar to S1 S2 and symmetric, so its eigenvalues are real.
    values = np.linalg.eigvalsh(root @ covariance_second @ root)
    overlap = np.sqrt(np.maximum(values, 0)).sum()
    spread = np.trace(covariance_first) + np.trace(covariance_second) - 2 * overlap
    return max(float(((mean_first - mean_second) ** 2).sum() + spread), 0.0)


def frechet_distance(
    first: Floats, second: Floats, weights_first: Floats | None = None, weights_second: Floats | None = None
) -> float:
    """Compute the squared Frechet distance between [N, F] and [M, F], at least two rows each, or between resamples."""
    if max(len(first), len(second)) >= first.shape[1]:
        return gaussian_frechet_distance(
            *mean_and_covariance(first, weights_first), *mean_and_covariance(second, weights_second)
        )
    # With fewer images than features, tr (S1^1/2 S2 S1^1/2)^1/2 is the sum of the singular values of A1 A2^T (small).
    mean_first, factor_first = mean_and_covariance_factor(first, weights_first)
    mean_second, factor_second = mean_and_covariance_factor(second, weights_second)
    overlap = np.linalg.svd(factor_first @ factor_second.T, compute_uv=False).sum()
    spread = (factor_first**2).sum() + (factor_second**2).sum() - 2 * overlap
    return max(float(((mean_first - mean_second) ** 2).sum() + spread), 0.0)


def bootstrap_frechet_distance(
    real: Floats, generated: Floats, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> Estimate:
    """Estimate the Frechet distance; the interval is the value +- 1.96 SD over resamples of both sets.

    A resample has fewer distinct images, which increases the distance. Therefore the resamples determine only the width
    of the interval, and its center is the value. `count` is the number of generated images. There is no interval
    without resamples, and the value is NaN if a set has fewer than two images.
    """
    if min(len(real), len(generated)) < 2:
        return NO_DATA
    value = frechet_distance(real, generated)
    if not num_resamples:
        return Estimate(value, float("nan"), float("nan"), len(generated))
    pairs = zip(
        resample_weights(len(real), num_resamples, seed),
        resample_weights(len(generated), num_resamples, seed + 1),
        strict=True,
    )
    spread = np.std([frechet_distance(real, generated, one, other) for one, other in pairs])
    return Estimate(value, max(value - 1.96 * float(spread), 0.0), value + 1.96 * float(spread), len(generated))


def polynomial_kernel(first: Floats, second: Floats) -> Floats:
    """Compute the kernel (<x, y> / F + 1)^3 of two sets: [N, F], [M, F] => [N, M]."""
    return np.asarray((first @ second.T / first.shape[1] + 1) ** 3)


def bootstrap_kid(real: Floats, generated: Floats, seed: int = 0) -> Estimate:
    """Estimate the kernel distance (KID); the interval is the value +- 1.96 SD over resamples of both sets.

    The estimator is unbiased for any number of images: its expected value is 0 for equal distributions, and it can be
    negative. At most MAX_KID_IMAGES images of each set are used.
    """
    real, generated = real[:MAX_KID_IMAGES], generated[:MAX_KID_IMAGES]
    if min(len(real), len(generated)) < 2:
        return NO_DATA
    within_real, within_generated, between = (
        polynomial_kernel(real, real),
        polynomial_kernel(generated, generated),
        polynomial_kernel(real, generated),
    )

    def distance(one: Floats, other: Floats) -> Floats:
        across = ((one @ between) * other).sum(1)
        return weighted_pair_means(one, within_real) + weighted_pair_means(other, within_generated) - 2 * across

    uniform_weights = [np.full((1, len(rows)), 1 / len(rows)) for rows in (real, generated)]
    value = float(distance(*uniform_weights)[0])
    resampled_weights = resample_weights(len(real), seed=seed), resample_weights(len(generated), seed=seed + 1)
    spread = 1.96 * float(np.nanstd(distance(*resampled_weights)))
    return Estimate(value, value - spread, value + spread, len(generated))


def second_half(count: int) -> slice:
    """Return the second half of `count` sources, whose edits are compared with the first half."""
    return slice(count // 2, 2 * (count // 2))


def realism_metrics(
    real: Floats, features_by_column: Mapping[str, Floats], seed: int = 0, space: RealismSpace = "classifier"
) -> dict[str, dict[str, Estimate]]:
    """Compute the Frechet and kernel distance of the generator and each baseline to real images in one space.

    `real` [N, F] are the features of the sources. `features_by_column` has the features of the edits (generator or
    baseline) of the rows `second_half(N)`. They are compared with the first half of the real images. The two halves of
    the real images give the noise floor, whose names end in `_real`. `space` determines the names of the metrics.
    Compare only distances with equal N, because the estimate decreases toward the true value as N grows.
    """
    frechet_name, kid_name = REALISM_METRIC_NAMES[space]
    is_high_dim = real.shape[1] > MAX_LOW_DIM_FEATURES
    first, second = real[: len(real) // 2], real[second_half(len(real))]
    num_resamples = NUM_RESAMPLES_HIGH_DIM if is_high_dim else NUM_RESAMPLES
    metrics = {}
    for name, edited in features_by_column.items():
        column_resamples = num_resamples if name == "generator" or not is_high_dim else 0
        metrics[name] = {
            frechet_name: bootstrap_frechet_distance(first, edited, seed, column_resamples),
            kid_name: bootstrap_kid(first, edited, seed),
        }
    metrics["generator"] |= {
        f"{frechet_name}_real": bootstrap_frechet_distance(first, second, seed, num_resamples),
        f"{kid_name}_real": bootstrap_kid(first, second, seed),
    }
    return metrics
