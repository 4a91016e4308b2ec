"""Labels, flips, valence and arousal against hand-made answers and scikit-learn."""

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import f1_score

from featgan.metrics.decisions import (
    attribute_table,
    decision_table,
    flip_rate,
    label_table,
    octants,
    regression_table,
    sufficiency_table,
    valence_arousal_table,
)
from featgan.metrics.predictions import Response

BEFORE = np.array([0, 0, 0, 1, 1, 2])
ASKED = np.array([0, 1, 1, 1, 0, 0])


def test_a_generator_that_copies_flips_nothing() -> None:
    table = label_table(BEFORE, ASKED, BEFORE)
    assert table["label_agreement"].value == pytest.approx(2 / 6)
    assert (table["flip_success"].value, table["flip_success"].count) == (0, 4)


def test_a_perfect_generator_flips_everything() -> None:
    table = label_table(BEFORE, ASKED, ASKED, ("neutral", "happy", "sad"))
    for name in ("label_agreement", "flip_success", "label_macro_f1"):
        assert table[name].value == pytest.approx(1), name
    assert table["label_agreement_happy"].value == 1
    assert "label_agreement_sad" not in table, "nobody asked for it"


def test_macro_f1_is_scikit_learns() -> None:
    decided = np.array([0, 1, 0, 1, 2, 0])
    expected = f1_score(ASKED, decided, labels=[0, 1], average="macro")
    table = label_table(BEFORE, ASKED, decided)
    assert table["label_macro_f1"].value == pytest.approx(expected)
    assert table["label_macro_f1"].low <= expected <= table["label_macro_f1"].high
    assert table["label_agreement_0"].value == pytest.approx(2 / 3)


def test_unknown_requests_are_left_out() -> None:
    table = label_table(BEFORE, np.array([0, 1, -1, -1, -1, -1]), BEFORE)
    assert (table["label_agreement"].value, table["label_agreement"].count) == (0.5, 2)


def test_sufficiency_and_flip_rate() -> None:
    half = np.array([0, 1, 0, 1, 0, 2])
    table = sufficiency_table(BEFORE, ASKED, {2: ASKED, 1: half})
    assert list(table) == ["sufficiency_at_1", "sufficiency_at_2"]
    assert table["sufficiency_at_1"].value == 0.5
    assert table["sufficiency_at_2"].value == 1
    assert flip_rate(BEFORE, half).value == pytest.approx(2 / 6)


def test_octants_of_the_circle() -> None:
    points = np.array([[1, 0.1], [0.1, 1], [-0.1, 1], [-1, 0.1], [-1, -0.1], [-0.1, -1], [0.1, -1], [1, -0.1]])
    assert octants(points).tolist() == list(range(8))
    assert octants(np.array([[1.0, 0.0], [1.0, -1e-30]])).max() <= 7


def test_valence_and_arousal() -> None:
    generator = np.random.default_rng(0)
    asked = generator.uniform(-1, 1, (80, 2))
    measured = 0.5 * asked + generator.normal(0, 0.1, (80, 2))
    table = valence_arousal_table(asked, measured)
    assert table["valence_pearson"].value == pytest.approx(pearsonr(asked[:, 0], measured[:, 0]).statistic)
    assert table["arousal_rmse"].value == pytest.approx(np.sqrt(np.mean((asked - measured)[:, 1] ** 2)))
    assert table["valence_sign_agreement"].value == np.mean(np.sign(asked[:, 0]) == np.sign(measured[:, 0]))
    assert 0 < table["valence_ccc"].value < table["valence_pearson"].value, "CCC also punishes the halved scale"
    counts = [found.count for name, found in table.items() if "octant" in name]
    assert sum(counts) == 80


def test_missing_labels_are_left_out_one_output_at_a_time() -> None:
    asked = np.array([[0.5, np.nan], [-0.5, 1.0], [0.2, -1.0]])
    table = regression_table(("valence", "arousal"), asked, np.nan_to_num(asked))
    assert table["valence_ccc"].value == pytest.approx(1)
    assert table["arousal_ccc"].count == 2


def test_constant_outputs_give_no_nan() -> None:
    table = regression_table(("valence",), np.zeros((5, 1)), np.ones((5, 1)))
    assert table["valence_ccc"].value == table["valence_pearson"].value == 0
    assert table["valence_rmse"].value == 1


def test_the_kind_of_output_chooses_the_measures() -> None:
    features = np.zeros((4, 3))
    scores = Response(features, np.eye(4))
    assert decision_table("expression", scores, scores, scores)["label_agreement"].value == 1
    pair, single = Response(features, np.eye(4)[:, :2]), Response(features, np.eye(4)[:, :1])
    assert "arousal_ccc" in decision_table("valence_arousal", pair, pair, pair)
    assert "mouth_ccc" in decision_table("factors", single, single, single, ("mouth",))
    assert decision_table("other", scores, scores, scores) == {}
    assert decision_table("expression", scores, scores, Response(features)) == {}


def test_attributes_count_changes_and_what_should_stay_apart() -> None:
    before = np.array([[0, 0], [1, 0], [1, 1]], bool)
    asked = np.array([[1, 0], [0, 1], [1, 1]], bool)
    half = np.array([[1, 1], [0, 0], [1, 1]], bool)
    table = attribute_table(before, asked, half, ("smiling", "young"))
    assert table["attribute_agreement"].value == pytest.approx((0.5 + 0.5 + 1) / 3)
    # Of the changes: one of one, one of two; nothing was asked of the third image.
    assert (table["flip_success"].value, table["flip_success"].count) == (0.75, 2)
    # Of what should stay: none of one, and both of the third image.
    assert (table["attributes_kept"].value, table["attributes_kept"].count) == (0.5, 2)
    assert table["attribute_agreement_smiling"].value == 1
    copied = attribute_table(before, asked, before)
    assert copied["flip_success"].value == 0 and copied["attributes_kept"].value == 1
    logits = Response(np.zeros((3, 1)), np.where(half, 2.0, -2.0))
    kinds = decision_table("attributes", logits, logits, logits, ("smiling", "young"))
    assert kinds["attribute_agreement"].value == 1
