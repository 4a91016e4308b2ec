"""Agreement with a second classifier that was not used in training: does its prediction change equally?

All metrics use only the pairs whose decision should change, because a copy of the source agrees on the others as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from featgan.metrics.bootstrap import Booleans, Estimate, Floats, Integers, bootstrap_mean
from featgan.metrics.faithfulness import centered_cosine


@dataclass(frozen=True)
class BeforeAfter:
    """Outputs [N, O] of one classifier for the sources (before) and their edits (after), and the output names."""

    before: Floats
    after: Floats
    names: Sequence[str]

    def predicted_labels(self, outputs: Floats, label_names: Sequence[str]) -> Integers:
        """Return the index in `label_names` of the class with the largest output: [N, O] => [N]."""
        indices = np.array([label_names.index(name) for name in self.names], dtype=np.int64)
        return np.take(indices, outputs.argmax(1))

    def probability_change(self, shared: Sequence[str]) -> Floats:
        """Compute the change of the probabilities of the shared classes: [N, S]."""
        columns = [list(self.names).index(name) for name in shared]
        return np.asarray(softmax(self.after[:, columns], 1) - softmax(self.before[:, columns], 1))


def classifier_agreement_metrics(
    first: BeforeAfter, second: BeforeAfter, target_outputs: Floats, target_differs: Booleans, seed: int = 0
) -> dict[str, Estimate]:
    """Compute the agreement of both classifiers with the target, with each other, and on the change.

    `target_outputs` [N, O] are the first classifier's outputs for the target images; `target_differs` [N] selects the
    pairs that count. Classes are matched by name. Empty if the classifiers share fewer than two classes.
    """
    shared = [name for name in first.names if name in second.names]
    if len(shared) < 2:
        return {}
    label_names = list(dict.fromkeys([*first.names, *second.names]))
    target_labels = first.predicted_labels(target_outputs, label_names)
    # The second classifier cannot predict a class that it lacks, so these targets are excluded.
    is_counted = target_differs & np.isin(target_labels, [label_names.index(name) for name in shared])
    target_labels = target_labels[is_counted]
    first_labels = [first.predicted_labels(outputs, label_names)[is_counted] for outputs in (first.before, first.after)]
    second_labels = [
        second.predicted_labels(outputs, label_names)[is_counted] for outputs in (second.before, second.after)
    ]
    first_correct, second_correct = (
        (first_labels[1] == target_labels).astype(np.float64),
        (second_labels[1] == target_labels).astype(np.float64),
    )
    cosines = centered_cosine(
        first.probability_change(shared)[is_counted], second.probability_change(shared)[is_counted]
    )
    return {
        "classifier_agreement": bootstrap_mean(first_correct, seed),
        "second_classifier_agreement": bootstrap_mean(second_correct, seed),
        "agreement_gap": bootstrap_mean(first_correct - second_correct, seed),
        "classifiers_agree": bootstrap_mean(first_labels[1] == second_labels[1], seed),
        "change_agreement": bootstrap_mean(same_label_change(*first_labels, *second_labels), seed),
        "change_cosine": bootstrap_mean(cosines, seed),
    }


def same_label_change(before: Integers, after: Integers, second_before: Integers, second_after: Integers) -> Floats:
    """Return 1 if the second classifier's label changed to the same label as the first's, else 0: four [N] => [N].

    NaN if the first label did not change, or if the second classifier predicted the new label before the edit.
    """
    changed = (before != after) & (second_before != after)
    return np.where(changed, (second_after == after).astype(np.float64), np.nan)


def second_classifier_correct(
    second: BeforeAfter, names: Sequence[str], target_outputs: Floats, target_differs: Booleans
) -> Floats:
    """Return 1 if the second classifier predicts the target label, else 0; NaN if the target equals the source: [N]."""
    label_names = list(dict.fromkeys([*names, *second.names]))
    target_labels = BeforeAfter(target_outputs, target_outputs, names).predicted_labels(target_outputs, label_names)
    return np.where(
        target_differs, (second.predicted_labels(second.after, label_names) == target_labels).astype(np.float64), np.nan
    )
