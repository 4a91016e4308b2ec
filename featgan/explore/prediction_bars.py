"""The black box's answer as a person reads it: a bar for each output, and its decision in a few words."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from featgan.metrics.bootstrap import as_floats
from featgan.report.analysis.predictions import Answer
from featgan.report.edits.sweeps import signed

MOST_BARS = 12
"""A box with more outputs shows those that are largest, before or after the edit."""
MOST_ATTRIBUTES = 3
"""Named in the headline."""


@dataclass(frozen=True)
class Bar:
    """One output of the box: of the edited picture, and of the source."""

    name: str
    value: float
    source: float
    text: str


def read_outputs(answer: Answer, outputs: Tensor) -> list[float]:
    """Outputs [O] => what is shown of them, probabilities where they are of classes or attributes."""
    return [round(float(value), 4) for value in answer.shown(as_floats(outputs))]


def show_value(answer: Answer, value: float) -> str:
    return f"{100 * value:.0f} %" if answer.is_share else signed(value)


def headline(answer: Answer, values: Sequence[float]) -> str:
    """The box's decision: the likeliest class, the attributes that it sees, both of valence and arousal."""
    order = sorted(range(len(values)), key=lambda index: -values[index])
    chosen = order[:1]
    if answer.kind == "valence_arousal":
        chosen = list(range(len(values)))
    elif answer.kind == "attributes":
        chosen = [index for index in order if values[index] >= 0.5][:MOST_ATTRIBUTES] or chosen
    return ", ".join(f"{answer.names[index]} {show_value(answer, values[index])}" for index in chosen)


def build_bars(answer: Answer, values: Sequence[float], sources: Sequence[float]) -> list[Bar]:
    """A bar for each output in the box's order; of many outputs the largest."""
    largest = sorted(range(len(values)), key=lambda index: -max(values[index], sources[index]))[:MOST_BARS]
    return [
        Bar(answer.names[index], values[index], sources[index], show_value(answer, values[index]))
        for index in sorted(largest)
    ]
