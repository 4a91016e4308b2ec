"""Training curves as inline SVG: a smoothed line over the range of the raw values, coloured by the page's own style."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 320, 130
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 20
NUM_BINS = 120
SMOOTHING = 5
"""The line is a running mean over this many bins."""


@dataclass(frozen=True)
class Bin:
    """The points of one stretch of steps."""

    step: float
    mean: float
    low: float
    high: float


def thin_out(points: Sequence[tuple[int, float]], most: int = NUM_BINS) -> list[Bin]:
    """Neighbouring points gathered into up to `most` bins."""
    size = max(1, math.ceil(len(points) / most))
    bins = []
    for start in range(0, len(points), size):
        steps, values = zip(*points[start : start + size], strict=True)
        bins.append(Bin(sum(steps) / len(steps), sum(values) / len(values), min(values), max(values)))
    return bins


def smooth(values: Sequence[float], window: int = SMOOTHING) -> list[float]:
    """Centred running mean; the window shrinks at the ends."""
    half = window // 2
    parts = [values[max(0, index - half) : index + half + 1] for index in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Up to `most` + 1 round numbers (1, 2, 5 times a power of ten) in [low, high]."""
    span = high - low
    if span <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def shorten(value: float) -> str:
    """A tick's label: 12000 => 12k, 0.25 => 0.25."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}".replace("-", "\N{MINUS SIGN}")
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def value_range(bins: Sequence[Bin], line: Sequence[float]) -> tuple[float, float]:
    """The line's range with a margin; wild single values may leave the picture."""
    lows, highs = sorted(entry.low for entry in bins), sorted(entry.high for entry in bins)
    low = min(*line, lows[len(lows) // 20])
    high = max(*line, highs[-1 - len(highs) // 20])
    margin = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    return low - margin, high + margin


@dataclass(frozen=True)
class Axes:
    """Data => pixels."""

    first: float
    last: float
    low: float
    high: float

    def x(self, step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - self.first) / ((self.last - self.first) or 1)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(1.0, max(0.0, share)))


def path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def draw_axes(axes: Axes) -> str:
    """Grid lines and labels; values at the left, steps below."""
    parts = []
    for value in ticks(axes.low, axes.high):
        y = axes.y(value)
        parts.append(f'<path class="rule" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{shorten(value)}</text>')
    for step in ticks(axes.first, axes.last, 3):
        anchor = "end" if axes.x(step) > WIDTH - RIGHT - 16 else "middle"
        parts.append(f'<text x="{axes.x(step):.1f}" y="{HEIGHT - 4}" text-anchor="{anchor}">{shorten(step)}</text>')
    return "".join(parts)


def draw_curve(points: Sequence[tuple[int, float]], label: str) -> Markup:
    """One series as an SVG with a text alternative; at least one point."""
    bins = thin_out(points)
    line = smooth([entry.mean for entry in bins])
    axes = Axes(bins[0].step, bins[-1].step, *value_range(bins, line))
    upper = [(axes.x(entry.step), axes.y(entry.high)) for entry in bins]
    lower = [(axes.x(entry.step), axes.y(entry.low)) for entry in reversed(bins)]
    middle = [(axes.x(entry.step), axes.y(value)) for entry, value in zip(bins, line, strict=True)]
    alternative = Markup("{}: from {} at step {} to {} at step {}").format(
        label, shorten(line[0]), points[0][0], shorten(line[-1]), points[-1][0]
    )
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}<path class="range" d="{}Z"/><path class="line" d="{}"/>'
        '<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="2.5"/></svg>'
    ).format(WIDTH, HEIGHT, alternative, Markup(draw_axes(axes)), path(upper + lower), path(middle), *middle[-1])
