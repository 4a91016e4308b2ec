"""Renderers that move known factors."""

import numpy as np
import pytest

from featgan.metrics.factors import FactorNames, factor_r2, factor_response, factor_table
from featgan.metrics.intervals import Floats, Measure

NAMES = FactorNames(expression=("mouth", "brow"), nuisance=("skin", "light"))
DEVIATIONS = np.array([0.5, 0.5, 2.0, 10.0])
GRID = np.array([-1.0, 0.0, 1.0])
NUM_IMAGES = 30


@pytest.fixture(scope="module")
def true() -> Floats:
    return np.random.default_rng(0).normal(size=(NUM_IMAGES, 4)) * DEVIATIONS


def sweeps(true: Floats, effect: Floats) -> Floats:
    """Components move factors by `effect` [K, F] or [N, K, F], in deviations per unit => [N, K, S, F]."""
    moved = GRID[None, None, :, None] * np.broadcast_to(effect, (NUM_IMAGES, *effect.shape[-2:]))[:, :, None]
    return true[:, None, None] + moved * DEVIATIONS


def table_of(true: Floats, effect: Floats, probed: Floats | None = None) -> dict[str, Measure]:
    seen = true if probed is None else probed
    return factor_table(NAMES, true, seen, seen, GRID, sweeps(true, effect), DEVIATIONS)


def test_an_edit_that_moves_only_the_expression(true: Floats) -> None:
    table = table_of(true, np.array([[1.0, 0.5, 0.0, 0.0], [0.0, -0.5, 0.0, 0.0]]))
    assert table["factor_change_expression"].value == pytest.approx((0.75 + 0.25) / 2)
    assert table["factor_nuisance_ratio"].value == pytest.approx(0, abs=1e-9)
    assert table["factor_probe_r2"].value == pytest.approx(1)
    assert table["factor_reconstruction_nuisance_error"].value == 0


def test_changes_are_in_deviations_whatever_the_factors_units(true: Floats) -> None:
    effect = np.array([[1.0, 1.0, 0.25, 0.25]])
    table = table_of(true, effect)
    assert table["factor_nuisance_ratio"].value == pytest.approx(0.25)
    assert table["component_01_nuisance_ratio"].value == pytest.approx(0.25)
    assert factor_response(GRID, sweeps(true, effect), DEVIATIONS) == pytest.approx(effect)


def test_nuisance_that_moves_both_ways_does_not_cancel(true: Floats) -> None:
    effect = np.tile(np.array([[1.0, 1.0, 0.5, 0.5]]), (NUM_IMAGES, 1, 1))
    effect[::2, :, 2:] *= -1
    assert table_of(true, effect)["factor_nuisance_ratio"].value == pytest.approx(0.5)
    assert factor_response(GRID, sweeps(true, effect), DEVIATIONS)[0, 2] == pytest.approx(0)


def test_a_generator_that_copies_has_no_ratio(true: Floats) -> None:
    table = table_of(true, np.zeros((1, 4)))
    assert table["factor_change_expression"].value == 0
    assert table["factor_nuisance_ratio"].count == 0
    assert table["factor_reconstruction_expression_error"].value == 0


def test_a_factor_the_probe_cannot_read_is_left_out(true: Floats) -> None:
    blind = true.copy()
    blind[:, 3] = blind[:, 3].mean()
    assert factor_r2(true, blind) == pytest.approx([1, 1, 1, 0], abs=1e-9)
    table = table_of(true, np.array([[1.0, 1.0, 0.5, 0.0]]), probed=blind)
    assert table["factor_nuisance_ratio"].value == pytest.approx(0.5), "not halved by a factor that is never seen"
    assert table["factor_probe_readable"].value == 0.75


def test_a_reconstruction_that_drifts_says_so(true: Floats) -> None:
    drifted = true + np.array([0, 0, 2.0, 0])
    table = factor_table(NAMES, true, true, drifted, GRID, sweeps(true, np.zeros((1, 4))), DEVIATIONS)
    assert table["factor_reconstruction_nuisance_error"].value == pytest.approx(0.5)
    assert table["factor_probe_nuisance_error"].value == 0
