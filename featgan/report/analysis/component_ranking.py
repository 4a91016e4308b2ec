"""The components of the features: how much each matters to the box's answer, how visible it is, what it pushes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from featgan.features.space import FeatureSpace
from featgan.metrics import traversal
from featgan.metrics.bootstrap import Floats
from featgan.metrics.predictions import project
from featgan.report.analysis.predictions import Answer, most_pushed
from featgan.report.analysis.visibility import Change
from featgan.report.edits.rendering import Rendering
from featgan.report.html.cards import ComponentFacts

OBEYED = 0.1
"""Slope below which the classifier does not see the move that was asked for."""
MATTERS = 0.05
"""Share of the answer's variation from which a component counts."""


@dataclass(frozen=True)
class Component:
    """One component as the report shows it; None stands for what could not be known."""

    index: int
    name: str  # the user's, or nothing
    rendering: Rendering
    change: Change
    pushes: Floats | None  # change of each output of the box per deviation [O]
    outputs: tuple[str, ...]  # O
    matters: float | None  # share of the variation of the box's answer
    numbers: Mapping[str, float]  # slope, cross-talk, monotonicity, linearity, as far as they were measured
    measured: Floats | None  # whitened, in the frames [N, T]

    @property
    def title(self) -> str:
        return self.name or f"Component {self.index + 1}"

    @property
    def slope(self) -> float | None:
        return self.numbers.get("slope")

    @property
    def crosstalk(self) -> float | None:
        return self.numbers.get("cross-talk")

    @cached_property
    def directions(self) -> tuple[list[str], list[str]]:
        """The outputs that grow, and those that shrink, as the component rises."""
        return ([], []) if self.pushes is None else most_pushed(self.pushes, self.outputs)

    @property
    def is_obeyed(self) -> bool:
        """Whether the classifier sees the move; taken for granted where it could not be asked."""
        return self.slope is None or self.slope >= OBEYED

    @property
    def is_shown(self) -> bool:
        """Whether a person and the classifier both see the move."""
        return self.change.grade != "none" and self.is_obeyed

    @property
    def counts(self) -> bool:
        """Whether the answer hangs on it; taken for granted where that is not known."""
        return self.matters is None or self.matters >= MATTERS

    @property
    def doubt(self) -> str:
        """Why nothing can be concluded: a `person`, the `classifier`, or `both` do not see it move; or nothing."""
        if self.is_shown:
            return ""
        if self.change.grade == "none":
            return "person" if self.is_obeyed else "both"
        return "classifier"


@dataclass(frozen=True)
class Ranking:
    """All components, and whether the shares of the answer are those of all its variation."""

    components: list[Component]  # by how much they matter
    is_whole: bool  # shares are of the whole variation, not of what the components shown account for
    measured_on: int | None = None  # pictures of the evaluation that the numbers are from; None: those of the page
    crosstalk: Floats | None = None  # of the pictures of the page [K, M]

    @property
    def covered(self) -> float | None:
        """Share of the answer's variation that the components shown account for, where that is known."""
        shares = [component.matters for component in self.components if component.matters is not None]
        return min(1.0, sum(shares)) if self.is_whole and shares else None


def rank_components(renderings: Sequence[Rendering], facts: ComponentFacts, answer: Answer | None) -> Ranking:
    """Everything about the components that were swept, those that matter most first."""
    swept = [rendering for rendering in renderings if rendering.sweep.component is not None]
    measured = measure_components(swept, facts.space)
    pushes = push_components(swept, facts, answer)
    weights, is_whole = weigh_components(pushes, answer)
    matrix = None if measured is None else traversal.crosstalk(requests(swept), measured)
    evaluated = [facts.evaluated(rendering.sweep.component or 0) for rendering in swept]
    is_evaluated = bool(evaluated) and all(evaluated)
    numbers = evaluated if is_evaluated else own_numbers(swept, measured, matrix)
    found = [
        Component(
            index=rendering.sweep.component or 0,
            name=facts.names.get(rendering.sweep.component or 0, ""),
            rendering=rendering,
            change=Change.of(rendering),
            pushes=None if pushes is None else pushes[place],
            outputs=answer.names if answer else (),
            matters=None if weights is None else float(weights[place]),
            numbers=numbers[place],
            measured=None if measured is None else measured[:, place, :, rendering.sweep.component],
        )
        for place, rendering in enumerate(swept)
    ]
    found.sort(key=lambda each: (-(each.matters or 0.0), -each.change.visible))
    return Ranking(found, is_whole, facts.measured_on if is_evaluated else None, matrix)


def measure_components(swept: Sequence[Rendering], space: FeatureSpace | None) -> Floats | None:
    """What the box measures in every frame of the K sweeps: whitened components [N, K, T, M], where it was asked."""
    if space is None or not swept:
        return None
    seen = [rendering.seen for rendering in swept]
    if any(each is None for each in seen):
        return None
    features = np.stack([each.features for each in seen if each is not None], 1)
    return project(space, features.reshape(-1, features.shape[-1])).reshape(*features.shape[:-1], -1)


def requests(swept: Sequence[Rendering]) -> Floats:
    """What is asked of each component, in deviations: [K, T]."""
    return np.array([rendering.sweep.values for rendering in swept])


def own_numbers(swept: Sequence[Rendering], measured: Floats | None, matrix: Floats | None) -> list[dict[str, float]]:
    """Each component's numbers as the pictures of the page have them; `matrix` is their cross-talk [K, M]."""
    if measured is None or matrix is None:
        return [{} for _ in swept]
    shown, asked = [rendering.sweep.component or 0 for rendering in swept], requests(swept)
    found = []
    for place, index in enumerate(shown):
        answered = measured[:, place, :, index]
        numbers = {
            "slope": matrix[place, index],
            "cross-talk": stray_share(matrix[place, shown], place),
            "monotonicity": traversal.monotonicity(asked[place], answered).mean(),
            "linearity": traversal.linearity(asked[place], answered).mean(),
        }
        found.append({name: float(value) for name, value in numbers.items()})
    return found


def stray_share(row: Floats, own: int) -> float:
    """Share of a row of the cross-talk matrix that lies outside its own component."""
    total = float(np.abs(row).sum())
    return 1 - float(abs(row[own])) / total if total else 1.0


def push_components(swept: Sequence[Rendering], facts: ComponentFacts, answer: Answer | None) -> Floats | None:
    """Change of each comparable output per deviation of each component [K, O].

    By the box's last layer, where it is linear; else as measured in the frames.
    """
    if answer is None or not swept:
        return None
    indices = [rendering.sweep.component or 0 for rendering in swept]
    if facts.space is not None and facts.head_weight is not None:
        return answer.comparable(facts.pushes()[indices])
    seen = [rendering.seen for rendering in swept]
    if any(each is None for each in seen):
        return None
    outputs = np.stack([answer.comparable(each.outputs) for each in seen if each is not None], 1)
    return np.stack(
        [traversal.sweep_slopes(requests(swept)[place][None, None], outputs[:, place : place + 1]).mean((0, 1))
         for place in range(len(swept))]
    )  # fmt: skip


def weigh_components(pushes: Floats | None, answer: Answer | None) -> tuple[Floats | None, bool]:
    """How much each component matters [K], and whether as a share of all that the answer varies by.

    Where it is not known how the answer varies, the components shown share 1.
    """
    if pushes is None or answer is None:
        return None, False
    weights = answer.weigh(pushes)
    if weights is not None:
        return np.minimum(weights, 1.0), True
    squares = np.square(pushes).sum(1)
    return squares / max(float(squares.sum()), 1e-12), False
