"""The Frechet distance of Gaussians that are known."""

import math

import numpy as np
import pytest
from scipy.linalg import sqrtm

from featgan.metrics.realism import (
    frechet_distance,
    frechet_measure,
    gaussian_distance,
    moments,
    realism_table,
    symmetric_root,
)


def test_known_gaussians() -> None:
    zero, one = np.zeros(2), np.array([3.0, 4.0])
    assert gaussian_distance(zero, np.eye(2), one, np.eye(2)) == pytest.approx(25)
    # Commuting covariances: the sum of (sqrt(a) - sqrt(b))^2.
    assert gaussian_distance(zero, np.diag([4.0, 9.0]), zero, np.diag([1.0, 1.0])) == pytest.approx(1 + 4)
    assert gaussian_distance(zero, np.zeros((2, 2)), zero, np.diag([4.0, 0.0])) == pytest.approx(4)


def test_covariances_that_do_not_commute_agree_with_scipy() -> None:
    generator = np.random.default_rng(0)
    first, second = (factor @ factor.T for factor in generator.normal(size=(2, 6, 6)))
    expected = np.trace(first + second - 2 * np.real(sqrtm(first @ second)))
    assert gaussian_distance(np.zeros(6), first, np.zeros(6), second) == pytest.approx(expected)
    assert symmetric_root(first) @ symmetric_root(first) == pytest.approx(first)


def test_moments_are_numpys() -> None:
    features = np.random.default_rng(0).normal(size=(30, 4))
    mean, covariance = moments(features)
    assert mean == pytest.approx(features.mean(0))
    assert covariance == pytest.approx(np.cov(features, rowvar=False))


def test_samples_come_near_the_truth_and_the_interval_covers_it() -> None:
    generator = np.random.default_rng(1)
    real, edited = generator.normal(size=(4000, 3)), generator.normal(size=(4000, 3)) + [1.0, 0, 0]
    found = frechet_measure(real, edited)
    assert found.value == pytest.approx(1, abs=0.15)
    assert found.low < 1 < found.high and found.count == 4000


def test_a_copy_is_at_no_distance_and_a_collapsed_set_is_far() -> None:
    real = np.random.default_rng(0).normal(size=(100, 8))
    table = realism_table({"own": (real, real), "second": (real, np.tile(real[:1], (50, 1)))})
    assert table["frechet_own"].value == pytest.approx(0, abs=1e-9)
    assert table["frechet_own"].low == 0
    assert table["frechet_second"].value > 7
    assert table["frechet_second"].count == 50


def test_fewer_images_than_features_still_work() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(2, 10, 40))
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first))
    assert math.isfinite(frechet_measure(first, second).high)


def test_too_few_images_give_no_number() -> None:
    assert frechet_measure(np.zeros((1, 2)), np.zeros((9, 2))).count == 0
