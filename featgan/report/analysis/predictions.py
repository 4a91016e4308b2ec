"""How a classifier's outputs are interpreted: as class probabilities, as attribute probabilities, or as numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import expit, softmax

from featgan.metrics.bootstrap import Floats

PROBABILITY_TOLERANCE = 1e-3
"""Tolerance for probabilities that should sum to 1; classifiers compute in single precision."""


@dataclass(frozen=True)
class OutputSpec:
    """What the O outputs of a classifier are and, if known, how they vary over the training images."""

    kind: str  # expression, valence_arousal, attributes or other
    names: tuple[str, ...]  # O
    stds: Floats | None = None  # standard deviations of the centered outputs [O]
    recalls: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    """Class => share of its labeled validation images that are classified correctly, and their number."""

    @property
    def is_probability(self) -> bool:
        """Whether the displayed values are between 0 and 1."""
        return self.kind in ("expression", "attributes")

    @property
    def accuracy(self) -> float | None:
        """Share of the labeled validation images that are classified correctly; None if not known."""
        count = sum(number for _, number in self.recalls.values())
        return sum(share * number for share, number in self.recalls.values()) / count if count else None

    def display_values(self, outputs: Floats) -> Floats:
        """Return the outputs [..., O] for display: as probabilities for classes and attributes."""
        if self.kind == "expression" and not are_probabilities(outputs, sum_to_one=True):
            return np.asarray(softmax(outputs, axis=-1))
        if self.kind == "attributes" and not are_probabilities(outputs, sum_to_one=False):
            return np.asarray(expit(outputs))
        return outputs

    def format_value(self, value: float) -> str:
        """Return one displayed output as text: `38 %`, or a number with two decimals and a true minus sign."""
        return (
            f"{100 * value:.0f}\N{NO-BREAK SPACE}%"
            if self.is_probability
            else f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
        )

    def center_outputs(self, outputs: Floats) -> Floats:
        """Return comparable outputs [..., O]: class logits minus their mean, which does not affect the prediction."""
        return outputs - outputs.mean(-1, keepdims=True) if self.kind == "expression" else outputs

    def component_importance(self, effects: Floats) -> Floats | None:
        """Return the importance of K components as shares of the output variance [K]; None if that is not known.

        `effects` [K, O] are changes of the comparable outputs per standard deviation of uncorrelated components, so
        their squares add up to the variance. Class logits share one total; other outputs may differ in units, so
        each counts equally.
        """
        if self.stds is None:
            return None
        squares, variances = np.square(effects), np.square(self.stds)
        if self.kind == "expression":
            return np.asarray(squares.sum(1) / max(variances.sum(), 1e-12))
        is_varying = variances > 1e-12
        return np.asarray((squares[:, is_varying] / variances[is_varying]).sum(1) / max(is_varying.sum(), 1))


def are_probabilities(outputs: Floats, sum_to_one: bool) -> bool:
    """Return whether outputs are probabilities: in [0, 1] and, if `sum_to_one`, with a sum of 1."""
    is_in_range = bool((outputs >= -PROBABILITY_TOLERANCE).all() and (outputs <= 1 + PROBABILITY_TOLERANCE).all())
    return is_in_range and (not sum_to_one or bool(np.allclose(outputs.sum(-1), 1, atol=PROBABILITY_TOLERANCE)))


def most_affected_outputs(effects: Floats, names: Sequence[str], max_outputs: int = 2) -> tuple[list[str], list[str]]:
    """Return the outputs that a component raises and those that it lowers, strongest first.

    An output counts if its change is at least half of the largest change.
    """
    order = np.argsort(-np.abs(effects))
    strong = [int(index) for index in order if abs(effects[index]) >= 0.5 * abs(effects[order[0]]) > 0]
    raised = [names[index] for index in strong if effects[index] > 0][:max_outputs]
    lowered = [names[index] for index in strong if effects[index] < 0][:max_outputs]
    return raised, lowered
