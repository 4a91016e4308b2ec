"""The rows of the ranking, with everything that the page says of a component."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from torch import Tensor

from featgan.report.analysis.component_ranking import Component, Ranking
from featgan.report.analysis.visibility import FAINT
from featgan.report.edits.rendering import difference_images
from featgan.report.edits.sources import Sources
from featgan.report.figures.charts import draw_response
from featgan.report.figures.data_uris import data_uri, reduced
from featgan.report.figures.grids import to_image
from featgan.report.html.summary_text import SHORT_DOUBTS, percent

MOST_PUSHED = 8
MINOR = 0.015
"""Share of the answer's variation below which a row is folded away at first: shown as 1 % or less."""
GROUND = 0.4
"""Brightness of the sources' mean under the map of where pictures change."""


@dataclass(frozen=True)
class Figure:
    """A number, how it is shown, what it means, and the length of its bar in [0, 1]."""

    name: str
    text: str
    meaning: str
    share: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Push:
    """An output of the box and how much one deviation changes it; `share` of the strongest, signed."""

    name: str
    value: float
    share: float


@dataclass(frozen=True)
class Row:
    """A component of the ranking and of its own card."""

    component: Component
    strip: str  # data address: the film of the source shown first
    where: str  # data address: where pictures change
    figures: tuple[Figure, ...]  # of the ranking
    more: tuple[Figure, ...]  # of the card
    pushes: tuple[Push, ...]
    response: Markup | None

    @property
    def doubt(self) -> str:
        return SHORT_DOUBTS.get(self.component.doubt, "")

    @property
    def is_minor(self) -> bool:
        """Whether the first screen does without it: too little of the answer hangs on it to be a figure."""
        return self.component.matters is not None and self.component.matters < MINOR

    @property
    def movement(self) -> str:
        """`neutral → happy`: what the answer moves from and to, from the left of the strip to its right."""
        up, down = self.component.directions
        return f"{', '.join(down)} \N{RIGHTWARDS ARROW} {', '.join(up)}" if up and down else self.spoken_movement

    @property
    def spoken_movement(self) -> str:
        up, down = self.component.directions
        parts = [f"towards {', '.join(up)}"] if up else []
        return " and ".join(parts + ([f"away from {', '.join(down)}"] if down else []))


GRADES = {"clear": "clear", "faint": "faint", "none": "unseen"}

MEANINGS = {
    "matters": "share of the variation in its answer",
    "matters here": "share of what these change in its answer",
    "visible": "largest change of a patch; black to white is 100 %",
    "slope": "part of a step that it sees; 1 is all",
    "cross-talk": "part of what it sees on other components",
}
"""What the columns of the ranking mean."""

MORE_MEANINGS = {
    "monotonicity": "rank correlation of what is asked and what is seen; 1 is ideal",
    "linearity": "R\N{SUPERSCRIPT TWO} of a straight line through asked and seen; 1 is ideal",
    "mean change": "of a pixel, from one end to the other, of the range",
    "coarse share": "part of the change's energy that is no fine texture",
    "place": "where the pictures change",
}


def build_rows(ranking: Ranking, sources: Sources, strips: Mapping[str, str]) -> list[Row]:
    """One for each component, in the order of the ranking; `strips` by the names of the sweeps."""
    if not ranking.components:
        return []
    ground = sources.images.float().mean((0, 1)) / 255
    return [
        Row(
            component=component,
            strip=strips[component.rendering.sweep.name],
            where=draw_where(component.change.where, ground),
            figures=ranked_figures(component, ranking.is_whole),
            more=more_figures(component),
            pushes=strongest_pushes(component),
            response=None
            if component.measured is None
            else draw_response(component.rendering.sweep.values, component.measured, component.title),
        )
        for component in ranking.components
    ]


def draw_where(where: Tensor, ground: Tensor) -> str:
    """Changes [S, S] as a map over the sources' mean [S, S], against their own largest: their size is a figure."""
    brightest = max(float(where.max()), FAINT)
    level = (where / brightest).clamp(0, 1)
    colours = difference_images(where, brightest).float()
    mixed = colours * level.sqrt() + 255 * GROUND * ground * (1 - level.sqrt())
    return data_uri(to_image(reduced(mixed.round().byte()[None])[0]))


def ranked_figures(component: Component, is_whole: bool) -> tuple[Figure, ...]:
    """How much it matters, how visible it is, and how well it obeys; a dash for what is not known."""
    change, matters = component.change, component.matters
    return (
        Figure(
            "matters",
            "\N{EN DASH}" if matters is None else percent(matters),
            MEANINGS["matters" if is_whole else "matters here"],
            matters,
        ),
        Figure(
            "visible",
            percent(change.visible),
            MEANINGS["visible"],
            change.visible,
            GRADES[change.grade],
        ),
        unit_figure("slope", component.slope, MEANINGS["slope"]),
        unit_figure("cross-talk", component.crosstalk, MEANINGS["cross-talk"]),
    )


def unit_figure(name: str, value: float | None, meaning: str) -> Figure:
    """A number whose natural range is 0 to 1."""
    if value is None:
        return Figure(name, "\N{EN DASH}", meaning)
    return Figure(name, f"{value:.2f}".replace("-", "\N{MINUS SIGN}"), meaning, min(1.0, max(0.0, value)))


def more_figures(component: Component) -> tuple[Figure, ...]:
    """What only the card shows."""
    change = component.change
    measured = [
        unit_figure(name, component.numbers[name], MORE_MEANINGS[name])
        for name in ("monotonicity", "linearity")
        if name in component.numbers
    ]
    return (
        *measured,
        Figure("mean change", f"{100 * float(change.where.mean()):.1f} %", MORE_MEANINGS["mean change"]),
        unit_figure("coarse share", change.coarse, MORE_MEANINGS["coarse share"]),
    )


def strongest_pushes(component: Component) -> tuple[Push, ...]:
    """The outputs that one deviation changes most, from the one that grows most to the one that shrinks most."""
    if component.pushes is None:
        return ()
    pushes = component.pushes
    strongest = np.argsort(-np.abs(pushes), kind="stable")[:MOST_PUSHED]
    largest = float(np.abs(pushes).max()) or 1.0
    ordered = sorted(strongest.tolist(), key=lambda output: -pushes[output])
    return tuple(
        Push(component.outputs[output], float(pushes[output]), float(pushes[output]) / largest) for output in ordered
    )
