"""Renderers whose response to a sweep is known."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from featgan.metrics.bootstrap import Floats
from featgan.metrics.traversal import crosstalk, linearity, monotonicity, projection_table, traversal_table

GRID = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])


def sweeps(matrix: Floats, num_images: int = 20) -> Floats:
    """A linear renderer: components asked for move the measured ones by `matrix` [K, M] => [N, K, S, M]."""
    start = np.random.default_rng(0).normal(size=(num_images, 1, 1, matrix.shape[1]))
    return start + GRID[None, None, :, None] * matrix[None, :, None, :]


def test_a_perfect_linear_renderer() -> None:
    table = traversal_table(GRID, sweeps(np.eye(3)))
    for name in ("monotonicity", "monotone_share", "slope", "linearity", "diagonal_dominance"):
        assert table[name].value == pytest.approx(1), name
        assert table[name].count == 20
    assert table["component_02_slope"].value == pytest.approx(1)


def test_a_generator_that_copies_does_not_follow() -> None:
    copies = np.repeat(sweeps(np.eye(3))[:, :, :1], 5, axis=2)
    rounding = np.random.default_rng(1).uniform(-1e-5, 1e-5, copies.shape)
    for measured in (copies, copies + rounding):
        table = traversal_table(GRID, measured)
        assert {name: found.value for name, found in table.items()} == dict.fromkeys(table, 0)


def test_crosstalk_and_dominance_by_hand() -> None:
    matrix = np.array([[1.0, -0.5, 0.0], [0.0, 0.5, 1.0]])
    measured = sweeps(matrix)
    assert crosstalk(GRID, measured) == pytest.approx(matrix)
    table = traversal_table(GRID, measured)
    assert table["diagonal_dominance"].value == pytest.approx(1.5 / 3)
    assert table["slope"].value == pytest.approx(0.75)
    assert table["monotonicity"].value == pytest.approx(1)


def test_swept_components_need_not_be_the_first() -> None:
    matrix = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    table = traversal_table(GRID, sweeps(matrix), swept=(2, 0))
    assert table["diagonal_dominance"].value == pytest.approx(1)
    assert table["component_01_monotonicity"].value == pytest.approx(1)
    assert traversal_table(GRID, sweeps(matrix))["slope"].value == pytest.approx(0)


def test_a_bent_but_rising_response_is_monotone_and_not_linear() -> None:
    measured = np.exp(2 * GRID)
    assert monotonicity(GRID, measured) == pytest.approx(1)
    assert 0.3 < linearity(GRID, measured) < 0.8


def test_a_reversed_response_is_no_success() -> None:
    table = traversal_table(GRID, sweeps(-np.eye(2)))
    assert table["monotonicity"].value == pytest.approx(-1)
    assert table["monotone_share"].value == 0
    assert table["slope"].value == pytest.approx(-1)


def test_monotonicity_is_scipys_spearman_with_ties() -> None:
    generator = np.random.default_rng(0)
    measured = generator.integers(0, 3, (6, 5)).astype(float)
    expected = [spearmanr(GRID, row).statistic for row in measured]
    assert monotonicity(np.broadcast_to(GRID, measured.shape), measured) == pytest.approx(expected)


def test_the_same_picture_twice_is_a_tie_in_spite_of_rounding() -> None:
    measured = np.array([0.3, 0.3 + 1e-7, 0.3 - 1e-7, 0.8, 0.8])
    assert monotonicity(GRID, measured) == pytest.approx(monotonicity(GRID, np.array([0.0, 0, 0, 1, 1])))


def test_requests_may_differ_by_component_and_by_image() -> None:
    by_component = np.stack([GRID, 3 * GRID])
    measured = by_component[None, :, :, None] * np.eye(2)[None, :, None, :] * np.ones((4, 1, 1, 1))
    assert traversal_table(by_component, measured)["slope"].value == pytest.approx(1)
    by_image = np.broadcast_to(by_component, (4, 2, 5)) + np.arange(4.0)[:, None, None]
    assert traversal_table(by_image, measured)["slope"].value == pytest.approx(1)


def test_a_sweep_that_asks_for_one_value_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="two different values"):
        traversal_table(np.zeros(5), sweeps(np.eye(2)))


def test_projection_curve_rises_with_components_kept() -> None:
    full = np.random.default_rng(0).normal(size=(100, 4))
    kept = {count: full * (np.arange(4) < count) for count in (4, 1)}
    table = projection_table({4: full, 1: full}, kept)
    assert list(table)[:2] == ["projection_01_distance", "projection_01_ccc"]
    assert table["projection_04_distance"].value == 0 < table["projection_01_distance"].value
    assert table["projection_01_ccc"].value == pytest.approx(0.25)
    assert table["projection_04_ccc"].value == pytest.approx(1)


def test_with_no_component_left_only_the_distance_to_the_mean_is_measured() -> None:
    mean, source = np.zeros((50, 4)), np.random.default_rng(0).normal(size=(50, 4))
    arrived, copied = (projection_table({0: mean}, {0: each}) for each in (mean, source))
    assert list(arrived) == ["projection_00_distance"] and arrived["projection_00_distance"].value == 0
    assert copied["projection_00_distance"].value == pytest.approx(np.sqrt((source**2).mean(1)).mean())
