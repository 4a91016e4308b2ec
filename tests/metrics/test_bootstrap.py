"""Tests of bootstrap intervals: their width and coverage, and NaN for missing data."""

import math

import numpy as np
import pytest
import torch

from featgan.metrics.bootstrap import (
    NO_DATA,
    bootstrap_many,
    bootstrap_mean,
    bootstrap_median,
    bootstrap_ratio,
    resample_weights,
)


def test_weights_are_resamples() -> None:
    weights = resample_weights(50, num_resamples=30, seed=3)
    assert np.allclose(weights.sum(1), 1)
    assert np.allclose(weights * 50, np.round(weights * 50))
    assert np.array_equal(weights, resample_weights(50, num_resamples=30, seed=3))
    assert not np.array_equal(weights, resample_weights(50, num_resamples=30, seed=4))


def test_mean_interval_has_the_theoretical_width() -> None:
    values = np.random.default_rng(0).normal(5, 2, 1000)
    actual = bootstrap_mean(values)
    assert actual.value == pytest.approx(values.mean())
    assert actual.low < actual.value < actual.high
    assert actual.high - actual.low == pytest.approx(2 * 1.96 * 2 / math.sqrt(1000), rel=0.2)


def test_mean_interval_covers_the_true_mean_in_95_percent_of_cases() -> None:
    generator = np.random.default_rng(1)
    estimates = [bootstrap_mean(generator.normal(0, 1, 80), seed) for seed in range(200)]
    covered = sum(estimate.low <= 0 <= estimate.high for estimate in estimates)
    assert 178 <= covered <= 199


def test_non_finite_values_are_excluded_and_not_counted() -> None:
    actual = bootstrap_mean(torch.tensor([1.0, float("nan"), 3.0, float("inf")]))
    assert (actual.value, actual.count) == (2.0, 2)


def test_no_images_give_nan() -> None:
    assert bootstrap_mean([]) is NO_DATA
    assert bootstrap_median([float("nan")]).count == 0
    assert bootstrap_ratio([1.0, 2.0], [0.0, 0.0]) is NO_DATA
    assert bootstrap_many(lambda weights: weights, 0) == []


def test_median_is_the_middle_value_and_robust() -> None:
    assert bootstrap_median([3.0, 1.0, 1000.0]).value == 3.0
    assert bootstrap_median([1.0, 2.0, 3.0, 4.0]).value == 2.0
    values = np.random.default_rng(2).normal(0, 1, 501)
    actual = bootstrap_median(values)
    assert actual.value == pytest.approx(np.median(values))
    assert actual.low < 0 < actual.high


def test_ratio_of_means_is_not_the_mean_of_ratios() -> None:
    assert bootstrap_ratio([1.0, 2.0], [1.0, 4.0]).value == pytest.approx(3 / 5)


def test_a_bfloat16_tensor_is_accepted() -> None:
    assert bootstrap_mean(torch.ones(3, dtype=torch.bfloat16)).value == 1.0
