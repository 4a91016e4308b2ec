"""Tests of faithfulness metrics with edits whose faithfulness is known."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from featgan.features.space import FeatureSpace
from featgan.metrics.baselines import nearest_rows
from featgan.metrics.bootstrap import Floats, resample_weights
from featgan.metrics.faithfulness import (
    centered_cosine,
    faithfulness_metrics,
    gallery_ranks,
    retrieval_ranks,
    target_progress_and_drift,
    target_progress_metrics,
    varying_columns,
    vector_agreement_metrics,
    weighted_concordance,
    weighted_r2,
)
from featgan.metrics.predictions import Predictions, standardize_features
from featgan.system.statistics import concordance_correlation

DEAD_FEATURE = 3
"""Column of the feature that is always 0."""


def make_features(count: int, seed: int) -> Floats:
    """Sample correlated features of unequal scale, one of them constant."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(count, 8)) @ np.random.default_rng(99).normal(size=(8, 8)) + 3
    features[:, DEAD_FEATURE] = 0
    return features


@pytest.fixture(scope="module")
def space() -> FeatureSpace:
    return FeatureSpace.fit(torch.from_numpy(make_features(500, 0)))


@pytest.fixture(scope="module")
def source() -> Predictions:
    return Predictions.from_values(make_features(200, 1))


@pytest.fixture(scope="module")
def target() -> Predictions:
    return Predictions.from_values(make_features(200, 2))


def test_a_perfect_generator(space: FeatureSpace, source: Predictions, target: Predictions) -> None:
    table = faithfulness_metrics(space, source, target, target)
    for name in (
        "target_progress",
        "target_progress_median",
        "target_progress_pooled",
        "ccc",
        "r2",
        "centered_cosine",
        "components_ccc",
    ):
        assert table[name].value == pytest.approx(1), name
    for name in ("retrieval_top1", "retrieval_top5", "retrieval_mrr", "component_01_ccc"):
        assert table[name].value == pytest.approx(1), name
    assert table["off_target_drift"].value == pytest.approx(0, abs=1e-9)
    assert table["retrieval_gallery_size"].value == 200


def test_a_copy_of_the_source(space: FeatureSpace, source: Predictions, target: Predictions) -> None:
    table = faithfulness_metrics(space, source, target, source)
    for name in ("target_progress", "target_progress_median", "target_progress_pooled", "off_target_drift"):
        assert table[name].value == 0, name
    assert abs(table["ccc"].value) < 0.2
    assert table["r2"].value < 0
    assert table["retrieval_top1"].value < 0.05


def test_a_generator_that_ignores_the_condition(space: FeatureSpace, source: Predictions, target: Predictions) -> None:
    ignoring = Predictions(np.tile(target.features[:1], (200, 1)))
    table = faithfulness_metrics(space, source, target, ignoring)
    assert table["ccc"].value == pytest.approx(0, abs=1e-9)
    assert table["r2"].value <= 0
    assert table["retrieval_top1"].value == pytest.approx(1 / 200)
    assert 0 < table["target_progress"].value < 0.8, "any plausible vector is closer to the target than the source"


def test_the_nearest_real_image_is_between_copy_and_perfect(
    space: FeatureSpace, source: Predictions, target: Predictions
) -> None:
    training = make_features(3000, 3)
    rows = nearest_rows(space, target.features, training)
    table = faithfulness_metrics(space, source, target, Predictions(training[rows]))
    assert 0.7 < table["target_progress_pooled"].value < 1.05
    assert 0.5 < table["ccc"].value < 1
    assert table["retrieval_top5"].value > 0.5


def test_an_edit_that_reaches_half_of_the_change(space: FeatureSpace, source: Predictions, target: Predictions) -> None:
    half = Predictions((source.features + target.features) / 2)
    table = faithfulness_metrics(space, source, target, half)
    assert table["target_progress"].value == pytest.approx(0.5)
    assert [table["target_progress"].low, table["target_progress"].high] == pytest.approx([0.5, 0.5])
    assert table["off_target_drift"].value == pytest.approx(0, abs=1e-9)


def test_progress_and_drift_equal_hand_computed_values() -> None:
    source, target = np.zeros((3, 2)), np.array([[2.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
    measured = np.array([[1.0, 1.0], [-2.0, 4.0], [1.0, 0.0]])
    progress, drift = target_progress_and_drift(source, target, measured)
    assert progress[:2].tolist() == [0.5, -1.0]
    assert drift[:2].tolist() == [0.5, 2.0]
    assert math.isnan(progress[2]) and math.isnan(drift[2]), "the target equals the source"
    assert target_progress_metrics(source, target, measured)["target_progress"].count == 2


def unweighted_concordance(target: Floats, measured: Floats) -> Floats:
    """Return the CCC of each dimension over all rows: two [N, L] => [L]."""
    return weighted_concordance(np.full((1, len(target)), 1 / len(target)), target, measured)[0]


def test_concordance_equals_hand_computed_values() -> None:
    target, measured = np.array([[1.0], [2.0], [3.0]]), np.array([[2.0], [3.0], [4.0]])
    # Population variances 2/3 each, covariance 2/3, means one apart: (4/3) / (4/3 + 1).
    assert unweighted_concordance(target, measured).tolist() == [pytest.approx(4 / 7)]
    assert unweighted_concordance(target, -target + 4).tolist() == [pytest.approx(-1)]


def test_concordance_equals_that_of_the_training_loss() -> None:
    generator = np.random.default_rng(0)
    target, measured = generator.normal(2, 3, (40, 5)), generator.normal(1, 2, (40, 5))
    trained = concordance_correlation(torch.from_numpy(measured), torch.from_numpy(target))
    assert unweighted_concordance(target, measured) == pytest.approx(trained.numpy())


def test_constant_dimensions_give_no_nan() -> None:
    generator = np.random.default_rng(0)
    target = generator.normal(size=(50, 3))
    target[:, 1] = 0.1 + 0.2  # not an exact binary fraction, so a naive variance is not exactly 0
    assert unweighted_concordance(target, target).tolist() == [pytest.approx(1), 0, pytest.approx(1)]
    assert varying_columns(target).tolist() == [0, 2]
    table = vector_agreement_metrics(target, target)
    assert table["ccc"].value == pytest.approx(1), "a dimension with a constant target is not averaged"
    assert table["r2"].value == pytest.approx(1)


def test_constant_features_give_no_nan(space: FeatureSpace) -> None:
    constant_source = Predictions(np.tile(make_features(1, 5), (10, 1)))
    constant_target = Predictions(np.tile(make_features(1, 6), (10, 1)))
    table = faithfulness_metrics(space, constant_source, constant_target, constant_source)
    assert all(math.isfinite(estimate.value) for estimate in table.values())
    assert table["ccc"].value == 0 and table["r2"].value == 0


def test_dead_features_are_dropped(space: FeatureSpace, source: Predictions, target: Predictions) -> None:
    assert standardize_features(space, source.features).shape == (200, 7)
    measured = target.features.copy()
    measured[:, DEAD_FEATURE] = 1e6
    table = faithfulness_metrics(space, source, target, Predictions(measured))
    assert table["target_progress"].value == pytest.approx(1)


def test_r2_equals_scikit_learn_on_every_resample() -> None:
    generator = np.random.default_rng(0)
    target = generator.normal(size=(60, 4)) * [1, 2, 3, 4]
    measured = target + generator.normal(size=(60, 4))
    weights = resample_weights(60, num_resamples=5)
    expected = [r2_score(target, measured, sample_weight=row, multioutput="variance_weighted") for row in weights]
    assert weighted_r2(weights, target, measured) == pytest.approx(expected)


def test_cosine_of_the_mean_is_zero() -> None:
    assert centered_cosine(np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([[0.0, 0.0], [2.0, 2.0]])) == pytest.approx(
        [0, 1]
    )


def test_retrieval_ranks_equal_hand_computed_values() -> None:
    gallery = np.array([[0.0], [1.0], [2.0], [5.0]])
    measured = np.array([[0.9], [4.0]])
    target = gallery[[0, 3]]
    assert retrieval_ranks(measured, target, gallery, np.array([0, 3])).tolist() == [2, 1]


def test_ties_get_the_middle_rank() -> None:
    gallery = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 9.0]])
    assert retrieval_ranks(np.array([[1.0, 0.1]]), gallery[:1], gallery, np.array([0])).tolist() == [2]
    all_tied = retrieval_ranks(np.zeros((1, 2)), np.array([[0.0, 1.0]]), np.array([[1.0, 0], [0, -1.0]]))
    assert all_tied.tolist() == [2], "three vectors at equal distance: ranks 1, 2 and 3, whose middle is 2"


def test_equal_vectors_are_ties_despite_rounding() -> None:
    generator = np.random.default_rng(0)
    vector = generator.normal(size=(1, 512)) * 100
    gallery = np.repeat(vector, 101, axis=0)
    ranks = retrieval_ranks(vector + generator.normal(size=(1, 512)), vector, gallery, np.array([7]))
    assert ranks.tolist() == [51]


def test_galleries_are_filled_up_to_their_size() -> None:
    target = np.arange(5.0)[:, None] * 10
    distractors = np.array([[41.0], [-1.0]])
    measured = np.full((5, 1), 1000.0)
    assert gallery_ranks(measured, target, size=3).tolist() == [3, 2, 1, 2, 1]
    assert gallery_ranks(measured, target, distractors, size=7).tolist() == [6, 5, 4, 3, 2]
    assert gallery_ranks(np.zeros((0, 1)), np.zeros((0, 1))).tolist() == []
