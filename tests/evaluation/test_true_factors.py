"""Tests of the metrics on true factors, with a fake evaluator and a fake factor probe."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from featgan.evaluation import true_factors
from featgan.evaluation.sweeps import SWEEP_LEVELS, SweepResults


def test_factors_are_matched_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    shard_names = ("glasses", "smile", "unpredicted", "brow")
    probe_names = ("brow", "hair", "glasses", "smile")
    monkeypatch.setattr(true_factors, "EXPRESSION_FACTORS", ("smile", "brow"))
    monkeypatch.setattr(true_factors, "NUISANCE_FACTORS", ("glasses", "hair", "unpredicted"))
    generator = np.random.default_rng(3)
    train, validation = generator.normal(size=(50, 4)) * [1, 2, 1, 4], generator.normal(size=(8, 4))
    splits = {"train": SimpleNamespace(factors=train), "validation": SimpleNamespace(factors=validation)}
    by_name = dict(zip(shard_names, validation.T, strict=True)) | {"hair": np.zeros(8)}
    levels = np.array(SWEEP_LEVELS)
    # Component 1 changes the smile by half of its standard deviation, component 2 the glasses by one.
    changes = {"smile": (0.5 * train[:, 1].std(), 0.0), "glasses": (0.0, train[:, 0].std())}
    swept = np.stack(
        [by_name[name][:, None, None] + np.multiply.outer(changes.get(name, (0, 0)), levels) for name in probe_names],
        -1,
    )
    evaluator = SimpleNamespace(
        shards=SimpleNamespace(get_split=splits.__getitem__, factor_names=shard_names, location="shards"),
        split=splits["validation"],
        cache=SimpleNamespace(features=lambda split, rows: np.zeros((len(rows), 2))),
        editor=SimpleNamespace(show_progress=lambda description, total: nullcontext()),
        edit_to_features=lambda images, target, source: images + 1,
        training_rows=np.arange(50),
        nearest_training_indices=lambda features: np.zeros(len(features), int),
    )
    rows, nearest = np.arange(8), np.broadcast_to(np.arange(len(levels)), (8, 2, len(levels)))
    sweeps = SweepResults(rows, torch.zeros(8, 1), nearest, np.zeros((8, 2, len(levels), 2)), swept)
    factor_probe = SimpleNamespace(spec="probe", class_names=probe_names)
    columns = np.stack([by_name[name] for name in probe_names], 1)
    drift = np.array([0.0, 0.0, train[:, 0].std(), 0.0])  # the reconstruction changes the glasses
    monkeypatch.setattr(
        true_factors, "predict_outputs", lambda probe, images: columns + drift * float(images.flatten()[0])
    )

    shared = true_factors.find_shared_factors(evaluator.shards, factor_probe)  # type: ignore[arg-type]
    response = true_factors.factor_response(evaluator, shared, sweeps)  # type: ignore[arg-type]
    np.testing.assert_allclose(response, np.array([[0.5, 0, 0], [0, 0, 1]]), atol=1e-9)  # smile, brow, glasses
    metrics = true_factors.measure_factors(evaluator, factor_probe, shared, sweeps)  # type: ignore[arg-type]
    table = {name: estimate.value for name, estimate in metrics["generator"].items()}
    assert table["component_01_nuisance_ratio"] == pytest.approx(0) and table["factor_probe_r2"] == pytest.approx(1)
    assert table["factor_nuisance_ratio"] == pytest.approx(0.5 / 0.125)
    assert table["factor_reconstruction_nuisance_error"] == pytest.approx(1)
    assert table["factor_reconstruction_expression_error"] == pytest.approx(0)
    # The nearest training images are rows 0 to 4 in turn; their true factors are used, not those of the probe.
    slopes = (train[: len(levels)][:, [1, 3, 0]] / train[:, [1, 3, 0]].std(0)).T @ levels / (levels**2).sum()
    real = {name: estimate.value for name, estimate in metrics["nearest_real"].items()}
    assert real["factor_change_expression"] == pytest.approx(np.abs(slopes[:2]).mean())
    assert real["factor_change_nuisance"] == pytest.approx(abs(slopes[2]))
