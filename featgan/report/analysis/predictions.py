"""How a black box's outputs are read: as shares of classes, as yes or no by attribute, or as plain numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import expit, softmax

from featgan.metrics.bootstrap import Floats

WHOLE = 1e-3
"""How far shares may miss a sum of 1 and still be shares: boxes compute in single precision."""


@dataclass(frozen=True)
class Answer:
    """What the O outputs of a box are, and how they vary over the training images where that is known."""

    kind: str  # expression, valence_arousal, attributes or other
    names: tuple[str, ...]  # O
    deviations: Floats | None = None  # of the comparable outputs [O]
    recalls: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    """Class => share of its labelled validation pictures that get their label, and their number."""

    @property
    def is_share(self) -> bool:
        """Whether what is shown lies between 0 and 1."""
        return self.kind in ("expression", "attributes")

    @property
    def accuracy(self) -> float | None:
        """Share of the labelled validation pictures that get their label."""
        count = sum(number for _, number in self.recalls.values())
        return sum(share * number for share, number in self.recalls.values()) / count if count else None

    def what(self, with_names: bool = True) -> str:
        """What the box tells, in words."""
        listed = f" ({', '.join(self.names[:8])}{', …' if len(self.names) > 8 else ''})" if with_names else ""
        right = ""
        if self.accuracy is not None:
            counts = [count for _, count in self.recalls.values()]
            most = f"its most frequent class makes up {100 * max(counts) / sum(counts):.0f} %"
            right = f", rightly in {100 * self.accuracy:.0f} % of the validation pictures ({most})"
        words = {
            "expression": f"tells {len(self.names)} classes apart{listed}{right}",
            "valence_arousal": "rates how pleasant (valence) and how stirred (arousal) a face looks",
            "attributes": f"answers {len(self.names)} questions by yes or no{listed}",
        }
        return words.get(self.kind, f"answers with {len(self.names)} number{'s' * (len(self.names) > 1)}")

    def shown(self, outputs: Floats) -> Floats:
        """Outputs [..., O] as a person reads them: probabilities, where classes or attributes are told."""
        if self.kind == "expression" and not are_shares(outputs, whole=True):
            return np.asarray(softmax(outputs, axis=-1))
        if self.kind == "attributes" and not are_shares(outputs, whole=False):
            return np.asarray(expit(outputs))
        return outputs

    def say(self, value: float) -> str:
        """One output as shown, in words: `38 %`, or a plain number with two digits and a true minus."""
        return (
            f"{100 * value:.0f}\N{NO-BREAK SPACE}%" if self.is_share else f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
        )

    def comparable(self, outputs: Floats) -> Floats:
        """Outputs [..., O] without what changes no decision: of classes, only differences between them count."""
        return outputs - outputs.mean(-1, keepdims=True) if self.kind == "expression" else outputs

    def weigh(self, pushes: Floats) -> Floats | None:
        """How much pushes [K, O] of the comparable outputs matter, as shares of what these vary by in all: [K].

        Pushes are changes per deviation of each of K uncorrelated components, so their squares add up to the
        variance. Classes are weighed together; other outputs, which have units of their own, count alike.
        """
        if self.deviations is None:
            return None
        squares, variances = np.square(pushes), np.square(self.deviations)
        if self.kind == "expression":
            return np.asarray(squares.sum(1) / max(variances.sum(), 1e-12))
        live = variances > 1e-12
        return np.asarray((squares[:, live] / variances[live]).sum(1) / max(live.sum(), 1))


def are_shares(outputs: Floats, whole: bool) -> bool:
    """Whether outputs are probabilities already: in [0, 1] and, when `whole`, adding up to 1."""
    inside = bool((outputs >= -WHOLE).all() and (outputs <= 1 + WHOLE).all())
    return inside and (not whole or bool(np.allclose(outputs.sum(-1), 1, atol=WHOLE)))


def most_pushed(pushes: Floats, names: Sequence[str], most: int = 2) -> tuple[list[str], list[str]]:
    """The outputs that a component raises, and those that it lowers, strongest first: those within half of the most."""
    order = np.argsort(-np.abs(pushes))
    strong = [int(index) for index in order if abs(pushes[index]) >= 0.5 * abs(pushes[order[0]]) > 0]
    up = [names[index] for index in strong if pushes[index] > 0][:most]
    down = [names[index] for index in strong if pushes[index] < 0][:most]
    return up, down
