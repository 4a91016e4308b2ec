"""Tests of decision metrics against hand-computed values and scikit-learn."""

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import f1_score

from featgan.metrics.decisions import (
    attribute_metrics,
    decision_metrics,
    flip_rate,
    label_metrics,
    octant_indices,
    regression_metrics,
    sufficiency_metrics,
    valence_arousal_metrics,
)
from featgan.metrics.predictions import Predictions

PREDICTIONS_BEFORE = np.array([0, 0, 0, 1, 1, 2])
TARGETS = np.array([0, 1, 1, 1, 0, 0])


def test_a_copy_of_the_source_has_no_validity() -> None:
    table = label_metrics(PREDICTIONS_BEFORE, TARGETS, PREDICTIONS_BEFORE)
    assert table["label_agreement"].value == pytest.approx(2 / 6)
    assert (table["validity"].value, table["validity"].count) == (0, 4)


def test_a_perfect_generator_has_full_validity() -> None:
    table = label_metrics(PREDICTIONS_BEFORE, TARGETS, TARGETS, ("neutral", "happy", "sad"))
    for name in ("label_agreement", "validity", "label_macro_f1"):
        assert table[name].value == pytest.approx(1), name
    assert table["label_agreement_happy"].value == 1
    assert "label_agreement_sad" not in table, "it is not a target"


def test_macro_f1_equals_scikit_learn() -> None:
    predicted = np.array([0, 1, 0, 1, 2, 0])
    expected = f1_score(TARGETS, predicted, labels=[0, 1], average="macro")
    table = label_metrics(PREDICTIONS_BEFORE, TARGETS, predicted)
    assert table["label_macro_f1"].value == pytest.approx(expected)
    assert table["label_macro_f1"].low <= expected <= table["label_macro_f1"].high
    assert table["label_agreement_0"].value == pytest.approx(2 / 3)


def test_unknown_targets_are_excluded() -> None:
    table = label_metrics(PREDICTIONS_BEFORE, np.array([0, 1, -1, -1, -1, -1]), PREDICTIONS_BEFORE)
    assert (table["label_agreement"].value, table["label_agreement"].count) == (0.5, 2)


def test_sufficiency_and_flip_rate() -> None:
    half = np.array([0, 1, 0, 1, 0, 2])
    table = sufficiency_metrics(PREDICTIONS_BEFORE, TARGETS, {2: TARGETS, 1: half})
    assert list(table) == ["sufficiency_at_1", "sufficiency_at_2"]
    assert table["sufficiency_at_1"].value == 0.5
    assert table["sufficiency_at_2"].value == 1
    assert flip_rate(PREDICTIONS_BEFORE, half).value == pytest.approx(2 / 6)


def test_octants_of_the_circle() -> None:
    points = np.array([[1, 0.1], [0.1, 1], [-0.1, 1], [-1, 0.1], [-1, -0.1], [-0.1, -1], [0.1, -1], [1, -0.1]])
    assert octant_indices(points).tolist() == list(range(8))
    assert octant_indices(np.array([[1.0, 0.0], [1.0, -1e-30]])).max() <= 7


def test_valence_and_arousal() -> None:
    generator = np.random.default_rng(0)
    target = generator.uniform(-1, 1, (80, 2))
    measured = 0.5 * target + generator.normal(0, 0.1, (80, 2))
    table = valence_arousal_metrics(target, measured)
    assert table["valence_pearson"].value == pytest.approx(pearsonr(target[:, 0], measured[:, 0]).statistic)
    assert table["arousal_rmse"].value == pytest.approx(np.sqrt(np.mean((target - measured)[:, 1] ** 2)))
    assert table["valence_sign_agreement"].value == np.mean(np.sign(target[:, 0]) == np.sign(measured[:, 0]))
    assert 0 < table["valence_ccc"].value < table["valence_pearson"].value, "CCC is also reduced by the halved scale"
    counts = [estimate.count for name, estimate in table.items() if "octant" in name]
    assert sum(counts) == 80


def test_missing_labels_are_excluded_separately_for_each_output() -> None:
    target = np.array([[0.5, np.nan], [-0.5, 1.0], [0.2, -1.0]])
    table = regression_metrics(("valence", "arousal"), target, np.nan_to_num(target))
    assert table["valence_ccc"].value == pytest.approx(1)
    assert table["arousal_ccc"].count == 2


def test_constant_outputs_give_no_nan() -> None:
    table = regression_metrics(("valence",), np.zeros((5, 1)), np.ones((5, 1)))
    assert table["valence_ccc"].value == table["valence_pearson"].value == 0
    assert table["valence_rmse"].value == 1


def test_task_selects_the_metrics() -> None:
    features = np.zeros((4, 3))
    scores = Predictions(features, np.eye(4))
    assert decision_metrics("expression", scores, scores, scores)["label_agreement"].value == 1
    pair, single = Predictions(features, np.eye(4)[:, :2]), Predictions(features, np.eye(4)[:, :1])
    assert "arousal_ccc" in decision_metrics("valence_arousal", pair, pair, pair)
    assert "mouth_ccc" in decision_metrics("factors", single, single, single, ("mouth",))
    assert decision_metrics("other", scores, scores, scores) == {}
    assert decision_metrics("expression", scores, scores, Predictions(features)) == {}


def test_attributes_to_change_and_to_keep_are_counted_separately() -> None:
    before = np.array([[0, 0], [1, 0], [1, 1]], bool)
    target = np.array([[1, 0], [0, 1], [1, 1]], bool)
    half = np.array([[1, 1], [0, 0], [1, 1]], bool)
    table = attribute_metrics(before, target, half, ("smiling", "young"))
    assert table["attribute_agreement"].value == pytest.approx((0.5 + 0.5 + 1) / 3)
    # Attributes to change: one of one, one of two, and none in the third image.
    assert (table["validity"].value, table["validity"].count) == (0.75, 2)
    # Attributes to keep: none of one in the first image, and both of the third image.
    assert (table["attributes_kept"].value, table["attributes_kept"].count) == (0.5, 2)
    assert table["attribute_agreement_smiling"].value == 1
    copied = attribute_metrics(before, target, before)
    assert copied["validity"].value == 0 and copied["attributes_kept"].value == 1
    logits = Predictions(np.zeros((3, 1)), np.where(half, 2.0, -2.0))
    kinds = decision_metrics("attributes", logits, logits, logits, ("smiling", "young"))
    assert kinds["attribute_agreement"].value == 1
