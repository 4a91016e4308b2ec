"""Tests of the feature space: standardization and principal components."""

import numpy as np
import pytest
import torch
from torch import Tensor

from featgan.features.space import FeatureSpace, decompose_symmetric


def make_features(num_rows: int, num_features: int, rank: int, seed: int = 0) -> Tensor:
    """Create features [N, F] in `rank` dimensions; every third feature is constant."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_rows, rank, generator=generator) @ torch.randn(rank, num_features, generator=generator)
    features[:, ::3] = 7.0
    return features


@pytest.mark.parametrize(("num_rows", "num_features"), [(12, 300), (300, 12), (12, 12), (12, 4096), (2, 5)])
def test_components_are_orthonormal_and_whiten_the_training_features(num_rows: int, num_features: int) -> None:
    features = make_features(num_rows, num_features, rank=20)
    space = FeatureSpace.fit(features)
    assert 1 <= space.num_components <= min(num_rows - 1, int(space.live.sum()))
    products = space.components @ space.components.T
    assert torch.allclose(products, torch.eye(space.num_components), atol=1e-5)
    assert not space.components[:, ~space.live].any()
    whitened = space.project(features)
    assert torch.allclose(whitened.mean(0), torch.zeros(space.num_components), atol=1e-3)
    assert torch.allclose(whitened.std(0, correction=0), torch.ones(space.num_components), atol=1e-2)
    assert (space.scales.diff() <= 0).all()


def test_all_components_reconstruct_the_training_features_of_a_small_set() -> None:
    features = make_features(10, 200, rank=30)
    space = FeatureSpace.fit(features)
    assert torch.allclose(space.reconstruct(space.project(features)), features, atol=1e-2)


def test_few_images_with_many_flat_features_give_a_space() -> None:
    # The covariance of such features has thousands of equal eigenvalues; the solver can return infinity for them.
    rng = np.random.default_rng(0)
    images = rng.normal(0, 1, (12, 8)) @ rng.normal(0, 1, (8, 4096))
    space = FeatureSpace.fit(torch.from_numpy(np.maximum(images - 1, 0).astype(np.float32)))
    assert all(tensor.isfinite().all() for tensor in space.tensors().values())
    assert space.num_components == 11


@pytest.mark.parametrize("failure", ["raises", "infinite"])
def test_the_eigenvalues_come_from_numpy_if_pytorch_fails(monkeypatch: pytest.MonkeyPatch, failure: str) -> None:
    matrix = torch.diag(torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64))

    def fail(values: Tensor) -> tuple[Tensor, Tensor]:
        if failure == "raises":
            raise RuntimeError("the algorithm failed to converge")
        return torch.full((3,), torch.inf, dtype=torch.float64), values

    monkeypatch.setattr(torch.linalg, "eigh", fail)
    values, vectors = decompose_symmetric(matrix)
    assert values.tolist() == pytest.approx([1, 2, 3])
    assert torch.allclose(vectors.abs(), torch.eye(3, dtype=torch.float64)[[1, 2, 0]].T)


@pytest.mark.parametrize("name", ["std", "scales"])
def test_space_without_variance_is_rejected(name: str) -> None:
    tensors = FeatureSpace.fit(make_features(20, 6, rank=4)).tensors()
    tensors[name] = tensors[name] * 0
    with pytest.raises(ValueError, match="standard deviation"):
        FeatureSpace.from_tensors(tensors)
