"""Tests of diversity metrics with edits that keep, halve and lose the diversity of their sources."""

import numpy as np
import pytest

from featgan.metrics.bootstrap import Floats
from featgan.metrics.diversity import diversity_metrics, pairwise_distance, pairwise_l1


@pytest.fixture(scope="module")
def sources() -> Floats:
    return np.random.default_rng(0).uniform(-1, 1, (30, 12))


def compute_diversity(sources: Floats, edited: Floats) -> dict[str, float]:
    metrics = diversity_metrics(pairwise_l1(sources), [pairwise_l1(edited), pairwise_l1(edited)])
    return {name: estimate.value for name, estimate in metrics.items()}


def test_a_copy_of_the_source_has_full_diversity(sources: Floats) -> None:
    metrics = compute_diversity(sources, sources)
    assert metrics["diversity_ratio"] == pytest.approx(1)
    total = sum(np.abs(one - other).mean() for one in sources for other in sources)
    assert metrics["diversity"] == pytest.approx(total / (30 * 29)), "over pairs of different sources"


def test_identical_edits_have_no_diversity(sources: Floats) -> None:
    assert compute_diversity(sources, np.tile(sources[:1], (30, 1))) == {"diversity": 0, "diversity_ratio": 0}


def test_edits_half_way_to_one_image_have_half_the_diversity(sources: Floats) -> None:
    assert compute_diversity(sources, (sources + sources[:1]) / 2)["diversity_ratio"] == pytest.approx(0.5)


def test_a_perfect_edit_of_one_factor_keeps_the_other_factors(sources: Floats) -> None:
    edited = sources.copy()
    edited[:, 0] = 1
    assert compute_diversity(sources, edited)["diversity_ratio"] == pytest.approx(11 / 12, abs=0.03)


def test_distances_of_features_are_euclidean(sources: Floats) -> None:
    expected = np.linalg.norm(sources[:, None] - sources[None], axis=2)
    assert pairwise_distance(sources) == pytest.approx(expected, abs=1e-6)


def test_the_diversity_of_one_source_is_nan() -> None:
    assert np.isnan(compute_diversity(np.ones((1, 4)), np.ones((1, 4)))["diversity_ratio"])
