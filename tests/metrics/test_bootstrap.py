"""Intervals cover what they should, and odd inputs give no false numbers."""

import json
import math

import numpy as np
import pytest
import torch

from featgan.metrics.bootstrap import (
    NOTHING,
    Measure,
    mean_measure,
    measures,
    median_measure,
    ratio_measure,
    resample_weights,
)


def test_weights_are_resamples() -> None:
    weights = resample_weights(50, draws=30, seed=3)
    assert np.allclose(weights.sum(1), 1)
    assert np.allclose(weights * 50, np.round(weights * 50))
    assert np.array_equal(weights, resample_weights(50, draws=30, seed=3))
    assert not np.array_equal(weights, resample_weights(50, draws=30, seed=4))


def test_mean_interval_has_the_width_theory_gives() -> None:
    values = np.random.default_rng(0).normal(5, 2, 1000)
    found = mean_measure(values)
    assert found.value == pytest.approx(values.mean())
    assert found.low < found.value < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * 2 / math.sqrt(1000), rel=0.2)


def test_mean_interval_covers_the_truth_about_95_times_in_100() -> None:
    generator = np.random.default_rng(1)
    found = [mean_measure(generator.normal(0, 1, 80), seed) for seed in range(200)]
    covered = sum(each.low <= 0 <= each.high for each in found)
    assert 178 <= covered <= 199


def test_values_that_are_not_numbers_are_left_out_and_not_counted() -> None:
    found = mean_measure(torch.tensor([1.0, float("nan"), 3.0, float("inf")]))
    assert (found.value, found.count) == (2.0, 2)


def test_no_images_give_no_number() -> None:
    assert mean_measure([]) is NOTHING
    assert median_measure([float("nan")]).count == 0
    assert ratio_measure([1.0, 2.0], [0.0, 0.0]) is NOTHING
    assert measures(lambda weights: weights, 0) == []


def test_median_is_the_middle_and_robust() -> None:
    assert median_measure([3.0, 1.0, 1000.0]).value == 3.0
    assert median_measure([1.0, 2.0, 3.0, 4.0]).value == 2.0
    values = np.random.default_rng(2).normal(0, 1, 501)
    found = median_measure(values)
    assert found.value == pytest.approx(np.median(values))
    assert found.low < 0 < found.high


def test_ratio_is_of_the_means_not_the_mean_of_ratios() -> None:
    assert ratio_measure([1.0, 2.0], [1.0, 4.0]).value == pytest.approx(3 / 5)


def test_a_half_float_tensor_is_read() -> None:
    assert mean_measure(torch.ones(3, dtype=torch.bfloat16)).value == 1.0


def test_json_says_nothing_where_there_is_no_number() -> None:
    assert json.loads(json.dumps(NOTHING.to_json(), allow_nan=False)) == {
        "value": None,
        "low": None,
        "high": None,
        "count": 0,
    }
    assert Measure(0.5, 0.4, 0.6, 7).to_json() == {"value": 0.5, "low": 0.4, "high": 0.6, "count": 7}
