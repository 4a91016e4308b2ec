"""Tests of the Frechet and kernel distance on known distributions."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torchmetrics.image.kid import poly_mmd

from featgan.metrics.realism import (
    bootstrap_frechet_distance,
    bootstrap_kid,
    frechet_distance,
    gaussian_frechet_distance,
    matrix_sqrt,
    mean_and_covariance,
    realism_metrics,
    second_half,
)


def test_frechet_distance_of_known_gaussians() -> None:
    zero, one = np.zeros(2), np.array([3.0, 4.0])
    assert gaussian_frechet_distance(zero, np.eye(2), one, np.eye(2)) == pytest.approx(25)
    # Commuting covariances: the sum of (sqrt(a) - sqrt(b))^2.
    assert gaussian_frechet_distance(zero, np.diag([4.0, 9.0]), zero, np.diag([1.0, 1.0])) == pytest.approx(1 + 4)
    assert gaussian_frechet_distance(zero, np.zeros((2, 2)), zero, np.diag([4.0, 0.0])) == pytest.approx(4)


def test_distance_equals_scipy_for_covariances_that_do_not_commute() -> None:
    generator = np.random.default_rng(0)
    first, second = (factor @ factor.T for factor in generator.normal(size=(2, 6, 6)))
    expected = np.trace(first + second - 2 * np.real(sqrtm(first @ second)))
    assert gaussian_frechet_distance(np.zeros(6), first, np.zeros(6), second) == pytest.approx(expected)
    assert matrix_sqrt(first) @ matrix_sqrt(first) == pytest.approx(first)


def test_mean_and_covariance_equal_numpy() -> None:
    features = np.random.default_rng(0).normal(size=(30, 4))
    mean, covariance = mean_and_covariance(features)
    assert mean == pytest.approx(features.mean(0))
    assert covariance == pytest.approx(np.cov(features, rowvar=False))


def test_the_interval_contains_the_true_distance() -> None:
    generator = np.random.default_rng(1)
    real, edited = generator.normal(size=(4000, 3)), generator.normal(size=(4000, 3)) + np.array([1.0, 0, 0])
    actual = bootstrap_frechet_distance(real, edited)
    assert actual.value == pytest.approx(1, abs=0.15)
    assert actual.low < 1 < actual.high and actual.count == 4000


def test_a_copy_has_the_noise_floor_and_a_collapsed_set_a_large_distance() -> None:
    real = np.random.default_rng(0).normal(size=(200, 8))
    half = second_half(200)
    metrics = realism_metrics(real, {"generator": np.tile(real[:1], (100, 1)), "copy_source": real[half]})
    floor = metrics["generator"]["frechet_distance_real"]
    assert metrics["copy_source"]["frechet_distance"] == floor and 0 < floor.value < 1
    assert metrics["generator"]["frechet_distance"].value > 7
    assert metrics["copy_source"]["kid"] == metrics["generator"]["kid_real"]
    assert metrics["generator"]["kid"].low > metrics["generator"]["kid_real"].high
    assert metrics["generator"]["frechet_distance"].count == 100


def test_the_distance_of_a_set_to_itself_is_zero() -> None:
    real = np.random.default_rng(0).normal(size=(100, 8))
    actual = bootstrap_frechet_distance(real, real)
    assert actual.value == pytest.approx(0, abs=1e-9) and actual.low == 0


def test_baselines_have_no_interval_in_a_high_dimensional_space() -> None:
    real = np.random.default_rng(0).normal(size=(20, 300))
    metrics = realism_metrics(real, {"generator": real[10:], "copy_source": real[10:]})
    assert math.isfinite(metrics["generator"]["frechet_distance"].high)
    assert math.isfinite(metrics["copy_source"]["frechet_distance"].value)
    assert math.isnan(metrics["copy_source"]["frechet_distance"].high)


def test_distance_with_fewer_images_than_features() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(2, 10, 40))
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first))
    by_covariances = gaussian_frechet_distance(*mean_and_covariance(first), *mean_and_covariance(second))
    assert frechet_distance(first, second) == pytest.approx(by_covariances), "the fast method gives the same distance"
    assert math.isfinite(bootstrap_frechet_distance(first, second).high)


def test_kernel_distance_equals_torchmetrics() -> None:
    generator = np.random.default_rng(0)
    real, edited = generator.normal(size=(40, 6)), generator.normal(0.5, 1, size=(40, 6))
    expected = float(poly_mmd(torch.from_numpy(real), torch.from_numpy(edited)))
    assert bootstrap_kid(real, edited).value == pytest.approx(expected)


def test_kernel_distance_of_equal_distributions_is_unbiased() -> None:
    generator = np.random.default_rng(0)
    few = [
        bootstrap_kid(generator.normal(size=(20, 8)), generator.normal(size=(20, 8)), seed=seed).value
        for seed in range(60)
    ]
    assert abs(np.mean(few)) < 3 * np.std(few) / math.sqrt(60), "unbiased"
    many = bootstrap_kid(*generator.normal(size=(2, 600, 8)))
    assert many.low < 0 < many.high and many.count == 600
    moved = bootstrap_kid(generator.normal(size=(600, 8)), generator.normal(0.5, 1, size=(600, 8)))
    assert moved.low > many.high


def test_too_few_images_give_nan() -> None:
    assert bootstrap_frechet_distance(np.zeros((1, 2)), np.zeros((9, 2))).count == 0
    assert bootstrap_kid(np.zeros((9, 2)), np.zeros((1, 2))).count == 0
