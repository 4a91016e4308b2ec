"""Charts of an evaluation: asked against seen, the cross-talk matrix, and the measures beside their controls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from featgan.metrics.bootstrap import Floats
from featgan.report.figures.curves import HEIGHT, WIDTH, Axes, draw_axes, path
from featgan.report.run_files import is_number

BESIDE = {
    "shift_aggregate": "relative shift: how far towards what was asked",
    "ccc": "concordance of asked and seen features",
    "label_agreement": "label agreement",
    "flip_success": "flips, where another label is asked",
    "attribute_agreement": "attribute agreement",
    "valence_ccc": "valence, concordance",
    "arousal_ccc": "arousal, concordance",
    "retrieval_top1": "retrieval: what was asked is the nearest of the gallery",
    "monotonicity": "monotonicity of a slider",
    "slope": "slope of a slider",
    "diagonal_dominance": "own component's share of a slider's change",
    "edit_coarse_share": "share of the edit that is coarse enough to be seen",
    "asked_edit_coarse_share": "the same, where another label is asked",
    "witness_agreement": "a second classifier sees the label asked for",
}
"""Measures of which more is better and 1 is the most, in the order shown."""

SHORT = {
    "shift_aggregate": "relative shift",
    "shift": "relative shift, mean of pairs",
    "shift_median": "relative shift, median of pairs",
    "ccc": "concordance",
    "flip_success": "flips",
    "retrieval_top1": "retrieval",
    "diagonal_dominance": "own component's share",
    "witness_agreement": "flips, second classifier",
    "box_agreement": "flips, this classifier, same pairs",
    "edit_l1": "size of the edit (L1)",
    "self_l1": "change where nothing is asked (L1)",
    "edit_coarse_share": "coarse share of the edit",
    "own_shift": "relative shift of the component",
}
"""Names of measures in tables, as the rest of the page has them; the others are shown as they are."""

MARKS = {
    "identity_copy": ("copy", "a copy of the source"),
    "shuffled_condition": ("shuffled", "edits to another request"),
    "mean_vector": ("mean", "features at the training mean"),
    "nearest_real": ("nearest", "the nearest real image"),
    "ceiling_jpeg": ("ceiling", "the wanted image after JPEG"),
    "ceiling_mirror": ("mirror", "the wanted image mirrored"),
    "ceiling_real": ("ceiling", "real images with the label"),
}
"""Control => class of its mark, and what it is."""


LOWEST, HIGHEST = -0.1, 1.1


@dataclass(frozen=True)
class Mark:
    """A value on the line of a measure; places are percent of the line."""

    kind: str
    text: str
    value: float
    place: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """A measure with the generator's mark, first, and those of the controls."""

    label: str
    marks: list[Mark]

    @property
    def alternative(self) -> str:
        return f"{self.label}: " + ", ".join(f"{mark.text} {mark.value:.2f}" for mark in self.marks)


def name_measure(name: object) -> str:
    """What a table calls a measure."""
    return SHORT.get(str(name), str(name).replace("_", " "))


def place_of(value: float) -> float:
    """Percent of the line, from LOWEST to HIGHEST; values beyond stand at its ends."""
    return round(100 * min(1.0, max(0.0, (value - LOWEST) / (HIGHEST - LOWEST))), 2)


def beside_controls(measures: Mapping[str, Any], controls: Mapping[str, Mapping[str, Any]]) -> list[Line]:
    """The measures of BESIDE that the evaluation has, each with its controls."""
    lines = []
    for name, label in BESIDE.items():
        own = mark_of("generator", "the generator", measures.get(name))
        others = [
            mark_of(*MARKS[control], values.get(name)) for control, values in controls.items() if control in MARKS
        ]
        if own is not None:
            lines.append(Line(label, [own, *(mark for mark in others if mark is not None)]))
    return lines


def mark_of(kind: str, text: str, measure: object) -> Mark | None:
    """A measure of an evaluation as a mark, where it has a value."""
    value = measure.get("value") if isinstance(measure, Mapping) else None
    if not is_number(value) or not isinstance(measure, Mapping):
        return None
    bounds = [measure.get(name) for name in ("low", "high")]
    low, high = (place_of(bound) if is_number(bound) else None for bound in bounds)
    return Mark(kind, text, float(value), place_of(value), low, high)


@dataclass(frozen=True)
class Cell:
    """A number of the cross-talk matrix; `strength` in [0, 1] colours it."""

    value: float
    strength: float

    @property
    def text(self) -> str:
        return f"{self.value:.2f}".replace("-0.00", "0.00").replace("-", "\N{MINUS SIGN}")


def shade(matrix: Sequence[Sequence[object]] | Floats, rows: Sequence[int]) -> list[list[Cell]]:
    """Rows and columns of the components shown, coloured against the strongest; nothing where some are missing."""
    try:
        values = np.asarray(matrix, dtype=np.float64)[np.ix_(rows, rows)]
    except (ValueError, TypeError, IndexError):
        return []
    strongest = float(np.abs(values).max(initial=1e-12))
    return [[Cell(float(value), abs(float(value)) / strongest) for value in row] for row in values]


def draw_response(asked: Sequence[float], seen: Floats, label: str) -> Markup:
    """A component as it was asked for [T] against what the box saw in each source's frames [N, T]."""
    mean = seen.mean(0)
    low, high = float(min(seen.min(), asked[0])), float(max(seen.max(), asked[-1]))
    margin = 0.06 * (high - low) or 1.0
    axes = Axes(asked[0], asked[-1], low - margin, high + margin)

    def line(values: Floats | Sequence[float]) -> str:
        return path([(axes.x(step), axes.y(float(value))) for step, value in zip(asked, values, strict=True)])

    sources = Markup("").join(Markup('<path class="single" d="{}"/>').format(line(values)) for values in seen)
    dots = Markup("").join(
        Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="2.2"/>').format(axes.x(step), axes.y(float(value)))
        for step, value in zip(asked, mean, strict=True)
    )
    alternative = (
        f"{label}: asked for {asked[0]:+.1f} to {asked[-1]:+.1f} deviations, the classifier sees "
        f"{mean[0]:+.1f} to {mean[-1]:+.1f} on average of {len(seen)} pictures"
    )
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}<path class="ideal" d="{}"/>{}'
        '<path class="line" d="{}"/>{}</svg>'
    ).format(WIDTH, HEIGHT, alternative, Markup(draw_axes(axes)), line(asked), sources, line(mean), dots)
