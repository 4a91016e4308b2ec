"""The Frechet distance of Gaussians that are known."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torchmetrics.image.kid import poly_mmd

from featgan.metrics.realism import (
    frechet_distance,
    frechet_measure,
    gaussian_distance,
    judged_half,
    kernel_measure,
    moments,
    realism_family,
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


def test_a_copy_is_at_the_floor_and_a_collapsed_set_is_far() -> None:
    real = np.random.default_rng(0).normal(size=(200, 8))
    half = judged_half(200)
    family = realism_family(real, {"generator": np.tile(real[:1], (100, 1)), "identity_copy": real[half]})
    floor = family["generator"]["frechet_real_floor"]
    assert family["identity_copy"]["frechet_edited"] == floor and 0 < floor.value < 1
    assert family["generator"]["frechet_edited"].value > 7
    assert family["identity_copy"]["kid_edited"] == family["generator"]["kid_real_floor"]
    assert family["generator"]["kid_edited"].low > family["generator"]["kid_real_floor"].high
    assert family["generator"]["frechet_edited"].count == 100


def test_the_same_set_is_at_no_distance() -> None:
    real = np.random.default_rng(0).normal(size=(100, 8))
    found = frechet_measure(real, real)
    assert found.value == pytest.approx(0, abs=1e-9) and found.low == 0


def test_controls_in_a_wide_space_get_no_interval() -> None:
    real = np.random.default_rng(0).normal(size=(20, 300))
    family = realism_family(real, {"generator": real[10:], "identity_copy": real[10:]})
    assert math.isfinite(family["generator"]["frechet_edited"].high)
    assert math.isfinite(family["identity_copy"]["frechet_edited"].value)
    assert math.isnan(family["identity_copy"]["frechet_edited"].high)


def test_fewer_images_than_features_still_work() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(2, 10, 40))
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first))
    by_covariances = gaussian_distance(*moments(first), *moments(second))
    assert frechet_distance(first, second) == pytest.approx(by_covariances), "the short way is the same distance"
    assert math.isfinite(frechet_measure(first, second).high)


def test_the_kernel_distance_is_torchmetrics_of_equally_many_images() -> None:
    generator = np.random.default_rng(0)
    real, edited = generator.normal(size=(40, 6)), generator.normal(0.5, 1, size=(40, 6))
    expected = float(poly_mmd(torch.from_numpy(real), torch.from_numpy(edited)))
    assert kernel_measure(real, edited).value == pytest.approx(expected)


def test_the_kernel_distance_of_one_source_is_around_zero_whatever_the_number_of_images() -> None:
    generator = np.random.default_rng(0)
    few = [kernel_measure(*generator.normal(size=(2, 20, 8)), seed).value for seed in range(60)]
    assert abs(np.mean(few)) < 3 * np.std(few) / math.sqrt(60), "unbiased"
    many = kernel_measure(*generator.normal(size=(2, 600, 8)))
    assert many.low < 0 < many.high and many.count == 600
    moved = kernel_measure(generator.normal(size=(600, 8)), generator.normal(0.5, 1, size=(600, 8)))
    assert moved.low > many.high


def test_too_few_images_give_no_number() -> None:
    assert frechet_measure(np.zeros((1, 2)), np.zeros((9, 2))).count == 0
    assert kernel_measure(np.zeros((9, 2)), np.zeros((1, 2))).count == 0
