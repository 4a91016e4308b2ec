"""Generators that keep, halve and lose the variety of their sources."""

import numpy as np
import pytest

from featgan.metrics.bootstrap import Floats
from featgan.metrics.diversity import diversity_table, pairwise_distance, pairwise_l1


@pytest.fixture(scope="module")
def sources() -> Floats:
    return np.random.default_rng(0).uniform(-1, 1, (30, 12))


def table_of(sources: Floats, edited: Floats) -> dict[str, float]:
    found = diversity_table(pairwise_l1(sources), [pairwise_l1(edited), pairwise_l1(edited)])
    return {name: measure.value for name, measure in found.items()}


def test_a_generator_that_copies_keeps_all_of_it(sources: Floats) -> None:
    found = table_of(sources, sources)
    assert found["diversity_ratio"] == pytest.approx(1)
    total = sum(np.abs(one - other).mean() for one in sources for other in sources)
    assert found["diversity"] == pytest.approx(total / (30 * 29)), "over pairs of different sources"


def test_the_same_picture_for_all_has_none(sources: Floats) -> None:
    assert table_of(sources, np.tile(sources[:1], (30, 1))) == {"diversity": 0, "diversity_ratio": 0}


def test_edits_half_way_to_one_picture_keep_half(sources: Floats) -> None:
    assert table_of(sources, (sources + sources[:1]) / 2)["diversity_ratio"] == pytest.approx(0.5)


def test_a_perfect_edit_of_one_factor_keeps_the_rest(sources: Floats) -> None:
    edited = sources.copy()
    edited[:, 0] = 1
    assert table_of(sources, edited)["diversity_ratio"] == pytest.approx(11 / 12, abs=0.03)


def test_distances_of_features_are_euclidean(sources: Floats) -> None:
    expected = np.linalg.norm(sources[:, None] - sources[None], axis=2)
    assert pairwise_distance(sources) == pytest.approx(expected, abs=1e-6)


def test_one_source_has_no_diversity_to_speak_of() -> None:
    assert np.isnan(table_of(np.ones((1, 4)), np.ones((1, 4)))["diversity_ratio"])
