"""Charts of an evaluation: target against measured value, the cross-talk matrix, and metrics next to baselines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from featgan.config.metric_specs import BASELINES, METRICS
from featgan.metrics.bootstrap import Floats
from featgan.report.figures.curves import HEIGHT, WIDTH, Axes, draw_axes, svg_path
from featgan.run.evaluation_document import EstimateRecord

MARK_CLASSES = {
    "copy_source": "copy",
    "shuffled_target": "shuffled",
    "training_mean": "mean",
    "nearest_real": "nearest",
    "target_jpeg": "jpeg",
    "source_jpeg": "compressed",
    "target_flipped": "flipped",
    "target_real": "real",
}
"""Baseline => CSS class of its mark."""

MARK_LABELS = {
    "generator": "the generator, with its 95 % interval",
    **{mark: BASELINES[name].label for name, mark in MARK_CLASSES.items()},
}
"""CSS class of a mark => its label in the key of the chart."""

AXIS_MIN, AXIS_MAX = -0.1, 1.1


@dataclass(frozen=True)
class ChartMark:
    """A value on the axis of a metric; positions are in percent of the axis."""

    kind: str
    text: str
    value: float
    position: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class ChartLine:
    """A metric with the mark of the generator first, then those of the baselines."""

    label: str
    marks: list[ChartMark]

    @property
    def alt_text(self) -> str:
        return f"{self.label}: " + ", ".join(f"{mark.text} {mark.value:.2f}" for mark in self.marks)


def axis_position(value: float) -> float:
    """Return the position in percent of the axis from AXIS_MIN to AXIS_MAX; values outside are clipped."""
    return round(100 * min(1.0, max(0.0, (value - AXIS_MIN) / (AXIS_MAX - AXIS_MIN))), 2)


def build_baseline_chart(
    metrics: Mapping[str, EstimateRecord], baselines: Mapping[str, Mapping[str, EstimateRecord]]
) -> list[ChartLine]:
    """Return a line for each metric of the chart that the evaluation has, with the marks of the baselines."""
    lines = []
    for name in (name for name, spec in METRICS.items() if spec.baseline_chart):
        generator_mark = build_mark("generator", "the generator", metrics.get(name))
        baseline_marks = [
            build_mark(MARK_CLASSES[baseline], BASELINES[baseline].label, values.get(name))
            for baseline, values in baselines.items()
            if baseline in BASELINES
        ]
        if generator_mark is not None:
            marks = [generator_mark, *(mark for mark in baseline_marks if mark is not None)]
            lines.append(ChartLine(METRICS[name].label, marks))
    return lines


def build_mark(kind: str, text: str, metric: EstimateRecord | None) -> ChartMark | None:
    """Return the mark of a metric; None if it has no value."""
    if metric is None or metric.value is None:
        return None
    low, high = (None if bound is None else axis_position(bound) for bound in (metric.low, metric.high))
    return ChartMark(kind, text, metric.value, axis_position(metric.value), low, high)


@dataclass(frozen=True)
class MatrixCell:
    """A number of the cross-talk matrix; `strength` in [0, 1] determines its color."""

    value: float
    strength: float

    @property
    def text(self) -> str:
        return f"{self.value:.2f}".replace("-0.00", "0.00").replace("-", "\N{MINUS SIGN}")


def shade_matrix(matrix: Sequence[Sequence[object]] | Floats, rows: Sequence[int]) -> list[list[MatrixCell]]:
    """Return these rows and columns, colored relative to the largest value; empty if some are missing."""
    try:
        values = np.asarray(matrix, dtype=np.float64)[np.ix_(rows, rows)]
    except (ValueError, TypeError, IndexError):
        return []
    strongest = float(np.abs(values).max(initial=1e-12))
    return [[MatrixCell(float(value), abs(float(value)) / strongest) for value in row] for row in values]


def draw_response_curve(targets: Sequence[float], measured: Floats, label: str) -> Markup:
    """Draw the target values of a component [T] against the measured values of each source [N, T] as an SVG."""
    mean = measured.mean(0)
    low, high = float(min(measured.min(), targets[0])), float(max(measured.max(), targets[-1]))
    margin = 0.06 * (high - low) or 1.0
    axes = Axes(targets[0], targets[-1], low - margin, high + margin)

    def trace_path(values: Floats | Sequence[float]) -> str:
        return svg_path([(axes.x(step), axes.y(float(value))) for step, value in zip(targets, values, strict=True)])

    source_paths = Markup("").join(
        Markup('<path class="per-source" d="{}"/>').format(trace_path(values)) for values in measured
    )
    dots = Markup("").join(
        Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="2.2"/>').format(axes.x(step), axes.y(float(value)))
        for step, value in zip(targets, mean, strict=True)
    )
    alt_text = (
        f"{label}: target values from {targets[0]:+.1f} to {targets[-1]:+.1f} SD, measured values from "
        f"{mean[0]:+.1f} to {mean[-1]:+.1f} SD, mean of {len(measured)} images"
    )
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}<path class="ideal" d="{}"/>{}'
        '<path class="line" d="{}"/>{}</svg>'
    ).format(
        WIDTH, HEIGHT, alt_text, Markup(draw_axes(axes)), trace_path(targets), source_paths, trace_path(mean), dots
    )
