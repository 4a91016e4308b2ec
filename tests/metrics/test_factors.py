"""Renderers that move known factors."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from featgan.evaluation import true_factors
from featgan.evaluation.sweeps import SWEEP, Sweeps
from featgan.metrics.bootstrap import Floats, Measure
from featgan.metrics.factors import FactorNames, factor_r2, factor_response, factor_table

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


def test_factors_are_read_by_name_in_whatever_order_shards_and_probe_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    held = ("glasses", "smile", "unread", "brow")  # of the shards
    read = ("brow", "hair", "glasses", "smile")  # of the probe
    monkeypatch.setattr(true_factors, "EXPRESSION_FACTORS", ("smile", "brow"))
    monkeypatch.setattr(true_factors, "NUISANCE_FACTORS", ("glasses", "hair", "unread"))
    generator = np.random.default_rng(3)
    train, own = generator.normal(size=(50, 4)) * [1, 2, 1, 4], generator.normal(size=(8, 4))
    splits = {"train": SimpleNamespace(factors=train), "validation": SimpleNamespace(factors=own)}
    by_name = dict(zip(held, own.T, strict=True)) | {"hair": np.zeros(8)}
    steps = np.array(SWEEP)
    # Of two components the first moves the smile by half of its deviation, the second the glasses by all of theirs.
    moved = {"smile": (0.5 * train[:, 1].std(), 0.0), "glasses": (0.0, train[:, 0].std())}
    swept = np.stack(
        [by_name[name][:, None, None] + np.multiply.outer(moved.get(name, (0, 0)), steps) for name in read], -1
    )
    subject = SimpleNamespace(
        shards=SimpleNamespace(split=splits.__getitem__, factor_names=held), split=splits["validation"],
        cache=SimpleNamespace(features=lambda split, rows: np.zeros((len(rows), 2))),
        editor=SimpleNamespace(showing=lambda text, count: nullcontext()),
        edit=lambda images, wanted, own: images + 1,
        known_rows=np.arange(50), nearest=lambda features: np.zeros(len(features), int),
    )  # fmt: skip
    rows, nearest = np.arange(8), np.broadcast_to(np.arange(len(SWEEP)), (8, 2, len(SWEEP)))
    sweeps = Sweeps(rows, torch.zeros(8, 1), nearest, np.zeros((8, 2, len(SWEEP), 2)), swept)
    probe = SimpleNamespace(spec="probe", class_names=read)
    columns = np.stack([by_name[name] for name in read], 1)
    drift = np.array([0.0, 0.0, train[:, 0].std(), 0.0])  # the reconstruction moves the glasses
    monkeypatch.setattr(true_factors, "outputs_of", lambda box, images: columns + drift * float(images.flatten()[0]))

    found, response = true_factors.measure_factors(subject, probe, sweeps)  # type: ignore[arg-type]
    np.testing.assert_allclose(response, [[0.5, 0, 0], [0, 0, 1]], atol=1e-9)  # smile, brow, glasses
    table = {name: each.value for name, each in found["generator"].items()}
    assert table["component_01_nuisance_ratio"] == pytest.approx(0) and table["factor_probe_r2"] == pytest.approx(1)
    assert table["factor_nuisance_ratio"] == pytest.approx(0.5 / 0.125)
    assert table["factor_reconstruction_nuisance_error"] == pytest.approx(1)
    assert table["factor_reconstruction_expression_error"] == pytest.approx(0)
    # The nearest training images are rows 0 to 4 in turn: their own factors are told, not the probe's.
    slopes = (train[: len(SWEEP)][:, [1, 3, 0]] / train[:, [1, 3, 0]].std(0)).T @ steps / (steps**2).sum()
    real = {name: each.value for name, each in found["nearest_real"].items()}
    assert real["factor_change_expression"] == pytest.approx(np.abs(slopes[:2]).mean())
    assert real["factor_change_nuisance"] == pytest.approx(abs(slopes[2]))
