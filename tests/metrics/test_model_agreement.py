"""Tests of model agreement: classifiers that agree, that disagree, and with different class names."""

import numpy as np
import pytest

from featgan.metrics.bootstrap import Floats, Integers
from featgan.metrics.model_agreement import (
    BeforeAfter,
    classifier_agreement_metrics,
    same_label_change,
    second_classifier_correct,
)

CLASS_NAMES = ("neutral", "happy", "sad")
PREDICTIONS_BEFORE = np.array([0, 0, 1, 2, 1, 0])
TARGETS = np.array([1, 2, 0, 1, 1, 0])
TARGET_DIFFERS = PREDICTIONS_BEFORE != TARGETS


def one_hot_outputs(labels: Integers, names: tuple[str, ...] = CLASS_NAMES) -> Floats:
    """Return outputs that predict these labels with high confidence."""
    return 9.0 * np.eye(len(names))[labels]


def agreement_metrics(blackbox_after: Integers, second_classifier_after: Integers) -> dict[str, float]:
    first, second = (
        BeforeAfter(one_hot_outputs(PREDICTIONS_BEFORE), one_hot_outputs(after), CLASS_NAMES)
        for after in (blackbox_after, second_classifier_after)
    )
    metrics = classifier_agreement_metrics(first, second, one_hot_outputs(TARGETS), TARGET_DIFFERS)
    assert {estimate.count for name, estimate in metrics.items() if name != "change_agreement"} == {4}
    return {name: estimate.value for name, estimate in metrics.items()}


def test_both_classifiers_agree_with_a_perfect_generator() -> None:
    assert agreement_metrics(TARGETS, TARGETS) == pytest.approx(
        {
            "classifier_agreement": 1, "second_classifier_agreement": 1, "agreement_gap": 0, "classifiers_agree": 1,
            "change_agreement": 1, "change_cosine": 1,
        }
    )  # fmt: skip


def test_a_copy_of_the_source_changes_neither_prediction() -> None:
    metrics = agreement_metrics(PREDICTIONS_BEFORE, PREDICTIONS_BEFORE)
    assert metrics["classifier_agreement"] == metrics["second_classifier_agreement"] == metrics["change_cosine"] == 0
    assert metrics["classifiers_agree"] == 1 and np.isnan(metrics["change_agreement"])


def test_a_change_of_one_prediction_only_has_no_agreement() -> None:
    metrics = agreement_metrics(TARGETS, PREDICTIONS_BEFORE)
    assert (metrics["classifier_agreement"], metrics["second_classifier_agreement"], metrics["agreement_gap"]) == (
        1,
        0,
        1,
    )
    assert metrics["change_agreement"] == metrics["change_cosine"] == metrics["classifiers_agree"] == 0


def test_both_classifiers_can_agree_on_a_wrong_class() -> None:
    other = (TARGETS + 1) % 3
    metrics = agreement_metrics(other, other)
    assert metrics["classifier_agreement"] == metrics["second_classifier_agreement"] == 0
    assert metrics["classifiers_agree"] == 1


def test_classes_are_matched_by_name() -> None:
    shuffled = ("sad", "neutral", "happy")
    order = np.array([shuffled.index(name) for name in CLASS_NAMES])
    second_classifier = BeforeAfter(
        one_hot_outputs(order[PREDICTIONS_BEFORE], shuffled), one_hot_outputs(order[TARGETS], shuffled), shuffled
    )
    actual = classifier_agreement_metrics(
        BeforeAfter(one_hot_outputs(PREDICTIONS_BEFORE), one_hot_outputs(TARGETS), CLASS_NAMES),
        second_classifier,
        one_hot_outputs(TARGETS),
        TARGET_DIFFERS,
    )
    assert actual["second_classifier_agreement"].value == actual["change_cosine"].value == pytest.approx(1)
    assert (
        np.nansum(second_classifier_correct(second_classifier, CLASS_NAMES, one_hot_outputs(TARGETS), TARGET_DIFFERS))
        == 4
    )


def test_targets_unknown_to_the_second_classifier_are_excluded() -> None:
    fewer = ("neutral", "happy", "contempt")
    second_classifier = BeforeAfter(
        one_hot_outputs(np.minimum(PREDICTIONS_BEFORE, 1), fewer), one_hot_outputs(np.minimum(TARGETS, 1), fewer), fewer
    )
    blackbox = BeforeAfter(one_hot_outputs(PREDICTIONS_BEFORE), one_hot_outputs(TARGETS), CLASS_NAMES)
    actual = classifier_agreement_metrics(blackbox, second_classifier, one_hot_outputs(TARGETS), TARGET_DIFFERS)
    assert (actual["second_classifier_agreement"].value, actual["second_classifier_agreement"].count) == (1, 3), (
        "the second classifier does not have the class sad"
    )
    other_task = BeforeAfter(
        one_hot_outputs(PREDICTIONS_BEFORE), one_hot_outputs(PREDICTIONS_BEFORE), ("young", "old", "neutral")
    )
    assert classifier_agreement_metrics(blackbox, other_task, one_hot_outputs(TARGETS), TARGET_DIFFERS) == {}, (
        "one shared class is not enough"
    )


def test_only_changed_predictions_are_compared() -> None:
    before, after = np.array([0, 0, 0, 1]), np.array([1, 1, 0, 1])
    second_before, second_after = np.array([0, 1, 0, 0]), np.array([1, 1, 1, 1])
    assert same_label_change(before, after, second_before, second_after).tolist()[0] == 1
    assert np.isnan(same_label_change(before, after, second_before, second_after)[1:]).all()
