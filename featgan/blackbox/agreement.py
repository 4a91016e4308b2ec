"""Compare a classifier's outputs with the labels of the shards: low agreement reveals a wrong preprocessing."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

MAX_COMPARED_IMAGES = 10_000
"""Number of labeled images that are compared with the predictions."""

MIN_COMPARED_IMAGES = 20
"""With fewer labeled images, the agreement is not reported."""

LOW_AGREEMENT = 0.3
"""A warning is logged if `Agreement.above_chance` is below this value."""

CLEAR_AGREEMENT = 0.5
"""The labels show the order of the classes if `Agreement.above_chance` has at least this value."""


@dataclass(frozen=True)
class Agreement:
    """The share of images whose predicted class is their label, with its 95 % interval, and the share by chance."""

    share: float
    low: float
    high: float
    chance: float
    count: int

    @property
    def above_chance(self) -> float:
        """The agreement between chance (0) and perfect (1), as in Cohen's kappa."""
        return (self.share - self.chance) / max(1 - self.chance, 1e-9)

    @property
    def is_low(self) -> bool:
        """Whether the predictions are close to guesses."""
        return self.above_chance < LOW_AGREEMENT or self.low <= self.chance

    def __str__(self) -> str:
        interval = f"95 % interval {100 * self.low:.1f} to {100 * self.high:.1f} %"
        chance = f"chance {100 * self.chance:.1f} %"
        return f"{100 * self.share:.1f} % of {self.count:,} labeled images ({interval}, {chance})"


def measure_agreement(predicted: Integers, labels: Integers, num_classes: int) -> Agreement:
    """Compare predicted classes with labels, both [N] in 0..K-1.

    Chance is the expected agreement if predictions and labels were independent. It is high if one class dominates.
    """
    count, num_equal = len(labels), int((predicted == labels).sum())
    interval = binomtest(num_equal, count).proportion_ci(method="wilson")
    shares = [np.bincount(values, minlength=num_classes) / count for values in (predicted, labels)]
    return Agreement(num_equal / count, float(interval.low), float(interval.high), float(shares[0] @ shares[1]), count)


def find_class_order(predicted: Integers, labels: Integers, num_classes: int) -> tuple[Integers, Agreement]:
    """Return the class of each output [K] with the best agreement, and that agreement.

    Outputs without predictions keep their own class where it is free.
    """
    confusion = confusion_matrix(labels, predicted, labels=np.arange(num_classes)).astype(np.float64)
    # A small preference for the identity decides between equal assignments.
    classes, outputs = linear_sum_assignment(-(confusion + 0.5 * np.eye(num_classes)))
    class_of_output = np.empty(num_classes, np.int64)
    class_of_output[outputs] = classes
    return class_of_output, measure_agreement(class_of_output[predicted], labels, num_classes)


def confirm_class_names(outputs: Floats, labels: Integers, classes: Sequence[str]) -> tuple[str, ...]:
    """Return the classes if the outputs [N, K] are these classes in this order according to labels [N], else ().

    The counts must be equal, and no other order of the classes may agree better.
    """
    if outputs.shape[1] != len(classes) or len(labels) < MIN_COMPARED_IMAGES:
        return ()
    order, agreement = find_class_order(outputs.argmax(1), labels, len(classes))
    is_same_order = bool((order == np.arange(len(classes))).all())
    return tuple(classes) if is_same_order and not agreement.is_low else ()


def suggest_class_order(outputs: Floats, labels: Integers, classes: Sequence[str]) -> tuple[str, ...]:
    """Return the classes in the order that the labels suggest for the outputs [N, K]; () if it is not clear."""
    if outputs.shape[1] != len(classes) or len(labels) < MIN_COMPARED_IMAGES:
        return ()
    order, agreement = find_class_order(outputs.argmax(1), labels, len(classes))
    is_same_order = bool((order == np.arange(len(classes))).all())
    return () if is_same_order or agreement.above_chance < CLEAR_AGREEMENT else tuple(classes[index] for index in order)
