"""Two boxes that see the same, that see different things, and that call things by other names."""

import numpy as np
import pytest

from featgan.metrics.bootstrap import Floats, Integers
from featgan.metrics.model_agreement import Seen, agreement_table, confirmations, same_change

NAMES = ("neutral", "happy", "sad")
BEFORE = np.array([0, 0, 1, 2, 1, 0])
ASKED_FOR = np.array([1, 2, 0, 1, 1, 0])
ASKED = BEFORE != ASKED_FOR


def outputs(labels: Integers, names: tuple[str, ...] = NAMES) -> Floats:
    """Sure of these labels."""
    return 9.0 * np.eye(len(names))[labels]


def table_of(box_after: Integers, witness_after: Integers) -> dict[str, float]:
    box, witness = (Seen(outputs(BEFORE), outputs(after), NAMES) for after in (box_after, witness_after))
    found = agreement_table(box, witness, outputs(ASKED_FOR), ASKED)
    assert {measure.count for name, measure in found.items() if name != "change_agreement"} == {4}
    return {name: measure.value for name, measure in found.items()}


def test_a_perfect_generator_is_confirmed() -> None:
    assert table_of(ASKED_FOR, ASKED_FOR) == pytest.approx(
        {
            "box_agreement": 1, "witness_agreement": 1, "witness_gap": 0, "boxes_agree": 1,
            "change_agreement": 1, "change_cosine": 1,
        }
    )  # fmt: skip


def test_a_generator_that_copies_changes_nothing_for_either() -> None:
    found = table_of(BEFORE, BEFORE)
    assert found["box_agreement"] == found["witness_agreement"] == found["change_cosine"] == 0
    assert found["boxes_agree"] == 1 and np.isnan(found["change_agreement"])


def test_a_pattern_that_deceives_one_box_is_not_confirmed() -> None:
    found = table_of(ASKED_FOR, BEFORE)
    assert (found["box_agreement"], found["witness_agreement"], found["witness_gap"]) == (1, 0, 1)
    assert found["change_agreement"] == found["change_cosine"] == found["boxes_agree"] == 0


def test_a_change_that_both_boxes_see_but_nobody_asked_for() -> None:
    other = (ASKED_FOR + 1) % 3
    found = table_of(other, other)
    assert found["box_agreement"] == found["witness_agreement"] == 0
    assert found["boxes_agree"] == 1


def test_classes_are_matched_by_name() -> None:
    shuffled = ("sad", "neutral", "happy")
    place = np.array([shuffled.index(name) for name in NAMES])
    witness = Seen(outputs(place[BEFORE], shuffled), outputs(place[ASKED_FOR], shuffled), shuffled)
    found = agreement_table(Seen(outputs(BEFORE), outputs(ASKED_FOR), NAMES), witness, outputs(ASKED_FOR), ASKED)
    assert found["witness_agreement"].value == found["change_cosine"].value == pytest.approx(1)
    assert np.nansum(confirmations(witness, NAMES, outputs(ASKED_FOR), ASKED)) == 4


def test_requests_that_the_witness_has_no_word_for_are_left_out() -> None:
    fewer = ("neutral", "happy", "contempt")
    witness = Seen(outputs(np.minimum(BEFORE, 1), fewer), outputs(np.minimum(ASKED_FOR, 1), fewer), fewer)
    box = Seen(outputs(BEFORE), outputs(ASKED_FOR), NAMES)
    found = agreement_table(box, witness, outputs(ASKED_FOR), ASKED)
    assert (found["witness_agreement"].value, found["witness_agreement"].count) == (1, 3), "sad is unknown to it"
    strangers = Seen(outputs(BEFORE), outputs(BEFORE), ("young", "old", "neutral"))
    assert agreement_table(box, strangers, outputs(ASKED_FOR), ASKED) == {}, "one word in common says nothing"


def test_only_decisions_that_changed_can_change_alike() -> None:
    before, after = np.array([0, 0, 0, 1]), np.array([1, 1, 0, 1])
    other_before, other_after = np.array([0, 1, 0, 0]), np.array([1, 1, 1, 1])
    assert same_change(before, after, other_before, other_after).tolist()[0] == 1
    assert np.isnan(same_change(before, after, other_before, other_after)[1:]).all()
