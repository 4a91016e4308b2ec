"""Tests of factor metrics with edits that change known factors."""

import numpy as np
import pytest

from featgan.metrics.bootstrap import Estimate, Floats
from featgan.metrics.factors import FactorNames, factor_metrics, factor_r2, mean_factor_slopes

FACTOR_NAMES = FactorNames(expression=("mouth", "brow"), nuisance=("skin", "light"))
STANDARD_DEVIATIONS = np.array([0.5, 0.5, 2.0, 10.0])
GRID = np.array([-1.0, 0.0, 1.0])
NUM_IMAGES = 30


@pytest.fixture(scope="module")
def true_factors() -> Floats:
    return np.random.default_rng(0).normal(size=(NUM_IMAGES, 4)) * STANDARD_DEVIATIONS


def sweep_factors(true_factors: Floats, effect: Floats) -> Floats:
    """Change factors by `effect` [K, F] or [N, K, F], in SD per unit of each component => [N, K, S, F]."""
    change = GRID[None, None, :, None] * np.broadcast_to(effect, (NUM_IMAGES, *effect.shape[-2:]))[:, :, None]
    return true_factors[:, None, None] + change * STANDARD_DEVIATIONS


def compute_metrics(true_factors: Floats, effect: Floats, probed: Floats | None = None) -> dict[str, Estimate]:
    estimated = true_factors if probed is None else probed
    return factor_metrics(
        FACTOR_NAMES, true_factors, estimated, estimated, GRID, sweep_factors(true_factors, effect), STANDARD_DEVIATIONS
    )


def test_an_edit_that_changes_only_the_expression(true_factors: Floats) -> None:
    table = compute_metrics(true_factors, np.array([[1.0, 0.5, 0.0, 0.0], [0.0, -0.5, 0.0, 0.0]]))
    assert table["factor_change_expression"].value == pytest.approx((0.75 + 0.25) / 2)
    assert table["factor_nuisance_ratio"].value == pytest.approx(0, abs=1e-9)
    assert table["factor_probe_r2"].value == pytest.approx(1)
    assert table["factor_reconstruction_nuisance_error"].value == 0


def test_changes_are_in_standard_deviations_independent_of_units(true_factors: Floats) -> None:
    effect = np.array([[1.0, 1.0, 0.25, 0.25]])
    table = compute_metrics(true_factors, effect)
    assert table["factor_nuisance_ratio"].value == pytest.approx(0.25)
    assert table["component_01_nuisance_ratio"].value == pytest.approx(0.25)
    assert mean_factor_slopes(GRID, sweep_factors(true_factors, effect), STANDARD_DEVIATIONS) == pytest.approx(effect)


def test_opposite_nuisance_changes_do_not_cancel(true_factors: Floats) -> None:
    effect = np.tile(np.array([[1.0, 1.0, 0.5, 0.5]]), (NUM_IMAGES, 1, 1))
    effect[::2, :, 2:] *= -1
    assert compute_metrics(true_factors, effect)["factor_nuisance_ratio"].value == pytest.approx(0.5)
    assert mean_factor_slopes(GRID, sweep_factors(true_factors, effect), STANDARD_DEVIATIONS)[0, 2] == pytest.approx(0)


def test_a_copy_of_the_source_has_no_nuisance_ratio(true_factors: Floats) -> None:
    table = compute_metrics(true_factors, np.zeros((1, 4)))
    assert table["factor_change_expression"].value == 0
    assert table["factor_nuisance_ratio"].count == 0
    assert table["factor_reconstruction_expression_error"].value == 0


def test_factors_that_the_probe_cannot_predict_are_excluded(true_factors: Floats) -> None:
    constant = true_factors.copy()
    constant[:, 3] = constant[:, 3].mean()
    assert factor_r2(true_factors, constant) == pytest.approx([1, 1, 1, 0], abs=1e-9)
    table = compute_metrics(true_factors, np.array([[1.0, 1.0, 0.5, 0.0]]), probed=constant)
    assert table["factor_nuisance_ratio"].value == pytest.approx(0.5), (
        "not halved by a factor that the probe cannot predict"
    )
    assert table["factor_probe_readable"].value == 0.75


def test_a_drifting_reconstruction_has_an_error(true_factors: Floats) -> None:
    drifted = true_factors + np.array([0, 0, 2.0, 0])
    table = factor_metrics(
        FACTOR_NAMES,
        true_factors,
        true_factors,
        drifted,
        GRID,
        sweep_factors(true_factors, np.zeros((1, 4))),
        STANDARD_DEVIATIONS,
    )
    assert table["factor_reconstruction_nuisance_error"].value == pytest.approx(0.5)
    assert table["factor_probe_nuisance_error"].value == 0
