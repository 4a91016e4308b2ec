"""Tests of the sums of feature vectors, and of the feature space that is fitted to them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from featgan.features import feature_sums as sums_module
from featgan.features.feature_sums import FeatureSums
from featgan.features.space import FeatureSpace


def make_features(num_rows: int, num_features: int = 12, seed: int = 0) -> Tensor:
    """Create float32 features [N, F] with different scales, large means and one constant feature."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 1, (num_rows, num_features)) @ rng.normal(0, 1, (num_features, num_features))
    values = values * np.geomspace(0.01, 10, num_features) + np.linspace(-50, 50, num_features)
    values[:, 3] = 7.3
    return torch.from_numpy(values.astype(np.float32))


def add_up_rows(features: Tensor) -> FeatureSums:
    sums = FeatureSums(features[0])
    sums.add(features)
    return sums


def largest_angle(first: Tensor, second: Tensor) -> float:
    """Return the largest principal angle between the row spaces of two matrices with orthonormal rows, in radians."""
    cosines = torch.linalg.svdvals(first.double() @ second.double().T)
    return float(torch.acos(cosines.min().clamp(max=1)))


def test_space_from_sums_equals_the_fit_to_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums_module, "BLOCK_ROWS", 64)
    features = make_features(1000)
    expected, actual = FeatureSpace.fit(features, 4), FeatureSpace.from_sums(add_up_rows(features), features, 4)
    for name, tensor in expected.tensors().items():
        assert torch.allclose(actual.tensors()[name].double(), tensor.double(), rtol=1e-5, atol=1e-5), name
    assert torch.equal(actual.live, expected.live)
    assert not actual.live[3]
    assert largest_angle(expected.components, actual.components) < 1e-3


def test_sums_do_not_lose_digits_if_the_mean_is_large() -> None:
    features = make_features(500).double() + 1e6
    covariance = add_up_rows(features).covariance()
    expected = torch.from_numpy(np.cov(features.numpy().T, ddof=0))
    assert torch.allclose(covariance, expected, rtol=1e-6, atol=1e-9)
    assert covariance[3].abs().max() == 0


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_merged_sums_are_those_of_all_rows(order: tuple[int, ...]) -> None:
    features = make_features(300)
    parts = [add_up_rows(part) for part in features.split([50, 120, 130])]
    merged = parts[order[0]]
    for number in order[1:]:
        merged.merge(parts[number])
    expected = add_up_rows(features)
    assert merged.count == 300
    assert torch.allclose(merged.mean, expected.mean, rtol=1e-12)
    assert torch.allclose(merged.covariance(), expected.covariance(), rtol=1e-9, atol=1e-9)
    assert torch.equal(merged.minimum, features.min(0).values.double())
    assert torch.equal(merged.maximum, features.max(0).values.double())
    assert not merged.is_constant


def test_constant_features_have_no_variance_and_are_not_live() -> None:
    features = torch.full((100, 3), 0.1)
    assert add_up_rows(features).is_constant
    assert not add_up_rows(features).covariance().any()
    features[:, 1] = torch.arange(100.0)
    sums = add_up_rows(features[:50])
    sums.merge(add_up_rows(features[50:]))
    assert not sums.is_constant
    assert FeatureSpace.from_sums(sums, features).live.tolist() == [False, True, False]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    features = make_features(10)
    sums = add_up_rows(features)
    features[4, 2] = value
    with pytest.raises(ValueError, match="not finite"):
        sums.add(features)
    assert sums.count == 10
    assert sums.covariance().isfinite().all()
