"""Training curves as inline SVG: a smoothed line over the range of the raw values, colored by the page's style."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 320, 130
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 20
NUM_BINS = 120
SMOOTHING_WINDOW = 5
"""The line is a running mean over this many bins."""


@dataclass(frozen=True)
class CurveBin:
    """The points of an interval of steps."""

    step: float
    mean: float
    low: float
    high: float


def bin_points(points: Sequence[tuple[int, float]], max_bins: int = NUM_BINS) -> list[CurveBin]:
    """Group consecutive points into at most `max_bins` bins."""
    size = max(1, math.ceil(len(points) / max_bins))
    bins = []
    for start in range(0, len(points), size):
        steps, values = zip(*points[start : start + size], strict=True)
        bins.append(CurveBin(sum(steps) / len(steps), sum(values) / len(values), min(values), max(values)))
    return bins


def running_mean(values: Sequence[float], window: int = SMOOTHING_WINDOW) -> list[float]:
    """Return the centered running mean; the window shrinks at the ends."""
    half = window // 2
    neighborhoods = [values[max(0, index - half) : index + half + 1] for index in range(len(values))]
    return [sum(neighborhood) / len(neighborhood) for neighborhood in neighborhoods]


def axis_ticks(low: float, high: float, max_intervals: int = 4) -> list[float]:
    """Return at most `max_intervals` + 1 round numbers (1, 2, 5 times a power of ten) in [low, high]."""
    span = high - low
    if span <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / max_intervals))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= max_intervals)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def format_tick(value: float) -> str:
    """Return the label of a tick: 12000 => 12k, 0.25 => 0.25."""
    for unit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{suffix}".replace("-", "\N{MINUS SIGN}")
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def value_range(bins: Sequence[CurveBin], line: Sequence[float]) -> tuple[float, float]:
    """Return the vertical range of a chart with a margin; a few outliers may lie outside."""
    lows, highs = sorted(curve_bin.low for curve_bin in bins), sorted(curve_bin.high for curve_bin in bins)
    low = min(*line, lows[len(lows) // 20])
    high = max(*line, highs[-1 - len(highs) // 20])
    margin = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    return low - margin, high + margin


@dataclass(frozen=True)
class Axes:
    """Map data coordinates to pixels."""

    first: float
    last: float
    low: float
    high: float

    def x(self, step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - self.first) / ((self.last - self.first) or 1)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(1.0, max(0.0, share)))


def svg_path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def draw_axes(axes: Axes) -> str:
    """Draw grid lines and labels: values at the left, steps below."""
    elements = []
    for value in axis_ticks(axes.low, axes.high):
        y = axes.y(value)
        elements.append(f'<path class="rule" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        elements.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{format_tick(value)}</text>')
    for step in axis_ticks(axes.first, axes.last, 3):
        anchor = "end" if axes.x(step) > WIDTH - RIGHT - 16 else "middle"
        elements.append(
            f'<text x="{axes.x(step):.1f}" y="{HEIGHT - 4}" text-anchor="{anchor}">{format_tick(step)}</text>'
        )
    return "".join(elements)


def draw_curve(points: Sequence[tuple[int, float]], label: str) -> Markup:
    """Draw a series of at least one point as an SVG with a text alternative."""
    bins = bin_points(points)
    line = running_mean([curve_bin.mean for curve_bin in bins])
    axes = Axes(bins[0].step, bins[-1].step, *value_range(bins, line))
    upper = [(axes.x(curve_bin.step), axes.y(curve_bin.high)) for curve_bin in bins]
    lower = [(axes.x(curve_bin.step), axes.y(curve_bin.low)) for curve_bin in reversed(bins)]
    middle = [(axes.x(curve_bin.step), axes.y(value)) for curve_bin, value in zip(bins, line, strict=True)]
    alt_text = Markup("{}: from {} at step {} to {} at step {}").format(
        label, format_tick(line[0]), points[0][0], format_tick(line[-1]), points[-1][0]
    )
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}<path class="range" d="{}Z"/><path class="line" d="{}"/>'
        '<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="2.5"/></svg>'
    ).format(WIDTH, HEIGHT, alt_text, Markup(draw_axes(axes)), svg_path(upper + lower), svg_path(middle), *middle[-1])
