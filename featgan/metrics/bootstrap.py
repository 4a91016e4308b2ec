"""Bootstrap 95 % intervals over images (Efron 1979), percentile method, seeded.

A statistic is a function of weights [D, N], D weightings of N images at once, whose rows sum to 1; it returns values
[D, ...]. A resample of the images is such a weighting, so a mean or a CCC of all resamples is a few matrix products.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]
Statistic = Callable[[Floats], Floats]

NUM_RESAMPLES = 200
"""Number of resamples for an interval."""

PERCENTILES = (2.5, 97.5)
"""Percentiles of the resampled values that are the ends of the interval."""


@dataclass(frozen=True)
class Estimate:
    """A statistic over `count` images with its 95 % interval; NaN if there were no images."""

    value: float
    low: float
    high: float
    count: int


NO_DATA = Estimate(float("nan"), float("nan"), float("nan"), 0)
"""The estimate without any images."""


def to_float64(values: Tensor | ArrayLike) -> Floats:
    """Convert a tensor on any device, or an array-like, to a float64 array."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


@lru_cache(maxsize=4)
def resample_weights(count: int, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> Floats:
    """Return weights [num_resamples, count] of images sampled with replacement; rows sum to 1; read-only.

    Equal counts and seeds give equal resamples, so that a model and its baselines are compared on the same images.
    """
    generator = np.random.default_rng(seed)
    weights = np.empty((num_resamples, count))
    for row in weights:
        row[:] = np.bincount(generator.integers(0, count, count), minlength=count)
    weights /= count
    weights.flags.writeable = False
    return weights


def bootstrap_many(statistic: Statistic, count: int, seed: int = 0) -> list[Estimate]:
    """Estimate a statistic with M values per weighting, over `count` images => M estimates."""
    if not count:
        return []
    values = statistic(np.full((1, count), 1 / count))[0]
    low, high = np.nanpercentile(statistic(resample_weights(count, seed=seed)), PERCENTILES, axis=0)
    return [
        Estimate(float(value), float(lower), float(upper), count)
        for value, lower, upper in zip(np.ravel(values), np.ravel(low), np.ravel(high), strict=True)
    ]


def bootstrap_statistic(statistic: Statistic, count: int, seed: int = 0) -> Estimate:
    """Estimate a statistic with one value per weighting, over `count` images."""
    return bootstrap_many(lambda weights: statistic(weights)[:, None], count, seed)[0] if count else NO_DATA


def bootstrap_mean(values: Tensor | ArrayLike, seed: int = 0) -> Estimate:
    """Estimate the mean of one value per image [N]; non-finite values are excluded and not counted."""
    finite_values = drop_nonfinite(values)
    return bootstrap_statistic(lambda weights: weights @ finite_values, len(finite_values), seed)


def bootstrap_column_means(values: Floats, seed: int = 0) -> list[Estimate]:
    """Estimate the mean of each column of [N, M] => M estimates."""
    return bootstrap_many(lambda weights: weights @ values, len(values), seed)


def bootstrap_median(values: Tensor | ArrayLike, seed: int = 0) -> Estimate:
    """Estimate the median (the lower one of an even count) of one value per image [N]; non-finite ones are excluded."""
    finite_values = np.sort(drop_nonfinite(values))

    def median(weights: Floats) -> Floats:
        # The values are sorted, so the median is where the cumulative weight reaches 1/2, with a margin for rounding.
        middle = (np.cumsum(weights, axis=1) >= 0.5 - 1e-9).argmax(axis=1)
        return np.take(finite_values, middle)

    return bootstrap_statistic(median, len(finite_values), seed)


def bootstrap_ratio(numerators: Tensor | ArrayLike, denominators: Tensor | ArrayLike, seed: int = 0) -> Estimate:
    """Estimate the ratio of two means over the same images, two [N]; NaN if the denominator's mean is 0."""
    numerator_values, denominator_values = to_float64(numerators), to_float64(denominators)
    if not len(denominator_values) or not np.any(denominator_values):
        return NO_DATA
    return bootstrap_statistic(
        lambda weights: safe_divide(weights @ numerator_values, weights @ denominator_values, np.nan),
        len(denominator_values),
        seed,
    )


def weighted_pair_means(weights: Floats, distances: Floats) -> Floats:
    """Compute the mean of a symmetric [N, N] over pairs of different images: weights [D, N] => [D]; NaN for one image.

    An image that occurs twice in a resample does not form a pair with itself, whose distance 0 would bias the mean.
    """
    total = ((weights @ distances) * weights).sum(1) - weights**2 @ np.diag(distances)
    return safe_divide(total, 1 - (weights**2).sum(1), np.nan)


def safe_divide(numerators: Floats, denominators: Floats, default: float = 0.0) -> Floats:
    """Divide elementwise; the result is `default` if the denominator is 0."""
    safe = np.where(denominators == 0, 1.0, denominators)
    return np.where(denominators == 0, default, numerators / safe)


def drop_nonfinite(values: Tensor | ArrayLike) -> Floats:
    """Return the finite ones of [N] values, in order."""
    array = to_float64(values)
    assert array.ndim == 1, array.shape
    return array[np.isfinite(array)]
