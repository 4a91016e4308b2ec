"""Tests of traversal metrics with known responses to a sweep."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from featgan.metrics.bootstrap import Floats
from featgan.metrics.traversal import (
    crosstalk_matrix,
    linear_fit_r2,
    projection_metrics,
    spearman_correlation,
    traversal_metrics,
)

GRID = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])


def sweep_components(matrix: Floats, num_images: int = 20) -> Floats:
    """Return linear responses: a sweep changes the measured components by `matrix` [K, M] => [N, K, S, M]."""
    start = np.random.default_rng(0).normal(size=(num_images, 1, 1, matrix.shape[1]))
    return start + GRID[None, None, :, None] * matrix[None, :, None, :]


def test_a_perfect_linear_response() -> None:
    table = traversal_metrics(GRID, sweep_components(np.eye(3)))
    for name in ("monotonicity", "monotone_share", "slope", "linearity", "diagonal_dominance"):
        assert table[name].value == pytest.approx(1), name
        assert table[name].count == 20
    assert table["component_02_slope"].value == pytest.approx(1)


def test_a_copy_of_the_source_has_no_response() -> None:
    copies = np.repeat(sweep_components(np.eye(3))[:, :, :1], 5, axis=2)
    rounding = np.random.default_rng(1).uniform(-1e-5, 1e-5, copies.shape)
    for measured in (copies, copies + rounding):
        table = traversal_metrics(GRID, measured)
        assert {name: estimate.value for name, estimate in table.items()} == dict.fromkeys(table, 0)


def test_crosstalk_and_dominance_equal_hand_computed_values() -> None:
    matrix = np.array([[1.0, -0.5, 0.0], [0.0, 0.5, 1.0]])
    measured = sweep_components(matrix)
    assert crosstalk_matrix(GRID, measured) == pytest.approx(matrix)
    table = traversal_metrics(GRID, measured)
    assert table["diagonal_dominance"].value == pytest.approx(1.5 / 3)
    assert table["slope"].value == pytest.approx(0.75)
    assert table["monotonicity"].value == pytest.approx(1)


def test_swept_components_need_not_be_the_first() -> None:
    matrix = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    table = traversal_metrics(GRID, sweep_components(matrix), swept=(2, 0))
    assert table["diagonal_dominance"].value == pytest.approx(1)
    assert table["component_01_monotonicity"].value == pytest.approx(1)
    assert traversal_metrics(GRID, sweep_components(matrix))["slope"].value == pytest.approx(0)


def test_an_exponential_response_is_monotone_and_not_linear() -> None:
    measured = np.exp(2 * GRID)
    assert spearman_correlation(GRID, measured) == pytest.approx(1)
    assert 0.3 < linear_fit_r2(GRID, measured) < 0.8


def test_a_reversed_response_is_not_monotone() -> None:
    table = traversal_metrics(GRID, sweep_components(-np.eye(2)))
    assert table["monotonicity"].value == pytest.approx(-1)
    assert table["monotone_share"].value == 0
    assert table["slope"].value == pytest.approx(-1)


def test_monotonicity_equals_scipys_spearman_with_ties() -> None:
    generator = np.random.default_rng(0)
    measured = generator.integers(0, 3, (6, 5)).astype(float)
    expected = [spearmanr(GRID, row).statistic for row in measured]
    assert spearman_correlation(np.broadcast_to(GRID, measured.shape), measured) == pytest.approx(expected)


def test_identical_images_are_tied_despite_rounding() -> None:
    measured = np.array([0.3, 0.3 + 1e-7, 0.3 - 1e-7, 0.8, 0.8])
    assert spearman_correlation(GRID, measured) == pytest.approx(
        spearman_correlation(GRID, np.array([0.0, 0, 0, 1, 1]))
    )


def test_requested_values_may_differ_by_component_and_image() -> None:
    by_component = np.stack([GRID, 3 * GRID])
    measured = by_component[None, :, :, None] * np.eye(2)[None, :, None, :] * np.ones((4, 1, 1, 1))
    assert traversal_metrics(by_component, measured)["slope"].value == pytest.approx(1)
    by_image = np.broadcast_to(by_component, (4, 2, 5)) + np.arange(4.0)[:, None, None]
    assert traversal_metrics(by_image, measured)["slope"].value == pytest.approx(1)


def test_a_sweep_with_one_requested_value_is_an_error() -> None:
    with pytest.raises(AssertionError, match="two different values"):
        traversal_metrics(np.zeros(5), sweep_components(np.eye(2)))


def test_projection_curve_rises_with_components_kept() -> None:
    full = np.random.default_rng(0).normal(size=(100, 4))
    kept = {count: full * (np.arange(4) < count) for count in (4, 1)}
    table = projection_metrics({4: full, 1: full}, kept)
    assert list(table)[:2] == ["projection_01_distance", "projection_01_ccc"]
    assert table["projection_04_distance"].value == 0 < table["projection_01_distance"].value
    assert table["projection_01_ccc"].value == pytest.approx(0.25)
    assert table["projection_04_ccc"].value == pytest.approx(1)


def test_without_components_only_the_distance_to_the_mean_is_computed() -> None:
    mean, source = np.zeros((50, 4)), np.random.default_rng(0).normal(size=(50, 4))
    reached, copied = (projection_metrics({0: mean}, {0: measured}) for measured in (mean, source))
    assert list(reached) == ["projection_00_distance"] and reached["projection_00_distance"].value == 0
    assert copied["projection_00_distance"].value == pytest.approx(np.sqrt((source**2).mean(1)).mean())
