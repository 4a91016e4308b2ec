"""The classifier's prediction for display: a bar for each output, and a short text."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from featgan.metrics.bootstrap import to_float64
from featgan.report.analysis.predictions import OutputSpec
from featgan.report.edits.sweeps import format_signed

MAX_BARS = 12
"""Maximum number of bars; a classifier with more outputs shows the largest, before or after the edit."""
MAX_ATTRIBUTES = 3
"""Maximum number of attributes in the text."""


@dataclass(frozen=True)
class OutputBar:
    """One output of the classifier: its value for the edited image (`value`) and for the source (`source`)."""

    name: str
    value: float
    source: float
    text: str


def to_display_values(output_spec: OutputSpec, outputs: Tensor) -> list[float]:
    """Convert outputs [O] to the values on display: probabilities for classes and attributes."""
    return [round(float(value), 4) for value in output_spec.display_values(to_float64(outputs))]


def format_output_value(output_spec: OutputSpec, value: float) -> str:
    """Format one value on display as a percentage or a signed number."""
    return f"{100 * value:.0f} %" if output_spec.is_probability else format_signed(value)


def format_prediction(output_spec: OutputSpec, values: Sequence[float]) -> str:
    """Format the prediction: the most likely class, the attributes at 50 % or more, or valence and arousal."""
    order = sorted(range(len(values)), key=lambda index: -values[index])
    shown_indices = order[:1]
    if output_spec.kind == "valence_arousal":
        shown_indices = list(range(len(values)))
    elif output_spec.kind == "attributes":
        shown_indices = [index for index in order if values[index] >= 0.5][:MAX_ATTRIBUTES] or shown_indices
    return ", ".join(
        f"{output_spec.names[index]} {format_output_value(output_spec, values[index])}" for index in shown_indices
    )


def build_output_bars(
    output_spec: OutputSpec, values: Sequence[float], source_values: Sequence[float]
) -> list[OutputBar]:
    """Return a bar for each output in the classifier's order; at most MAX_BARS, the largest."""
    largest_indices = sorted(range(len(values)), key=lambda index: -max(values[index], source_values[index]))[:MAX_BARS]
    return [
        OutputBar(
            output_spec.names[index],
            values[index],
            source_values[index],
            format_output_value(output_spec, values[index]),
        )
        for index in sorted(largest_indices)
    ]
