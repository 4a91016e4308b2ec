"""Bootstrap 95 % intervals over images (Efron 1979), percentile form, seeded.

A statistic takes many weightings of the images at once: weights [D, N], each row summing to 1, give values [D, ...].
A resample of the images is such a weighting, so means, medians, CCC and the like are all one matrix product per moment.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import isfinite

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]
Statistic = Callable[[Floats], Floats]

DRAWS = 200
"""Resamples an interval is taken from."""

LEVELS = (2.5, 97.5)
"""Percentiles of the resampled values that bound the interval."""


@dataclass(frozen=True)
class Measure:
    """A statistic over `count` images with its 95 % interval; not a number when there was no image to take it from."""

    value: float
    low: float
    high: float
    count: int

    def to_json(self) -> dict[str, float | int | None]:
        """Fields by name; None stands for not-a-number and infinity, which JSON cannot say."""
        return {name: field if isfinite(field) else None for name, field in asdict(self).items()}


NOTHING = Measure(float("nan"), float("nan"), float("nan"), 0)
"""The measure of no images at all."""


def as_floats(values: Tensor | ArrayLike) -> Floats:
    """A tensor on any device, or anything numpy reads => float64 array."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


@lru_cache(maxsize=4)
def resample_weights(count: int, draws: int = DRAWS, seed: int = 0) -> Floats:
    """Weights [draws, count] of images drawn with replacement, each row summing to 1; not to be written to.

    The same count and seed give the same resamples, so a model and its controls are compared on the same images.
    """
    generator = np.random.default_rng(seed)
    weights = np.empty((draws, count))
    for row in weights:
        row[:] = np.bincount(generator.integers(0, count, count), minlength=count)
    weights /= count
    weights.flags.writeable = False
    return weights


def measures(statistic: Statistic, count: int, seed: int = 0) -> list[Measure]:
    """A statistic with M values per weighting, over `count` images => M measures."""
    if not count:
        return []
    values = statistic(np.full((1, count), 1 / count))[0]
    low, high = np.nanpercentile(statistic(resample_weights(count, seed=seed)), LEVELS, axis=0)
    return [
        Measure(float(value), float(least), float(most), count)
        for value, least, most in zip(np.ravel(values), np.ravel(low), np.ravel(high), strict=True)
    ]


def measure(statistic: Statistic, count: int, seed: int = 0) -> Measure:
    """A statistic with one value per weighting, over `count` images."""
    return measures(lambda weights: statistic(weights)[:, None], count, seed)[0] if count else NOTHING


def mean_measure(values: Tensor | ArrayLike, seed: int = 0) -> Measure:
    """Mean of one number per image [N]; images where it is not finite are left out and not counted."""
    kept = finite(values)
    return measure(lambda weights: weights @ kept, len(kept), seed)


def column_measures(values: Floats, seed: int = 0) -> list[Measure]:
    """Mean of each column of [N, M] => M measures."""
    return measures(lambda weights: weights @ values, len(values), seed)


def median_measure(values: Tensor | ArrayLike, seed: int = 0) -> Measure:
    """Median (the lower one of an even number) of one number per image [N]; not finite ones are left out."""
    kept = np.sort(finite(values))

    def median(weights: Floats) -> Floats:
        # Values are sorted, so the median is where the weights before it reach a half; the margin is for rounding.
        middle = (np.cumsum(weights, axis=1) >= 0.5 - 1e-9).argmax(axis=1)
        return np.take(kept, middle)

    return measure(median, len(kept), seed)


def ratio_measure(numerators: Tensor | ArrayLike, denominators: Tensor | ArrayLike, seed: int = 0) -> Measure:
    """Ratio of two means over the same images, one pair of numbers per image; not a number when the lower mean is 0."""
    above, below = as_floats(numerators), as_floats(denominators)
    if not len(below) or not np.any(below):
        return NOTHING
    return measure(lambda weights: divide(weights @ above, weights @ below, np.nan), len(below), seed)


def pair_means(weights: Floats, between: Floats) -> Floats:
    """Mean of a symmetric [N, N] over pairs of different images: weights [D, N] => [D]; not a number for one image.

    An image that a resample holds twice makes no pair with itself, which would be no distance and pull the mean.
    """
    total = ((weights @ between) * weights).sum(1) - weights**2 @ np.diag(between)
    return divide(total, 1 - (weights**2).sum(1), np.nan)


def divide(numerators: Floats, denominators: Floats, otherwise: float = 0.0) -> Floats:
    """Elementwise quotient, `otherwise` where the denominator is 0."""
    safe = np.where(denominators == 0, 1.0, denominators)
    return np.where(denominators == 0, otherwise, numerators / safe)


def finite(values: Tensor | ArrayLike) -> Floats:
    """The finite ones of [N] values, in order."""
    array = as_floats(values)
    assert array.ndim == 1, array.shape
    return array[np.isfinite(array)]
