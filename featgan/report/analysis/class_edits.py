"""The edits toward each class or output, with the classifier's predictions before and after the edit."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from featgan.metrics.bootstrap import Floats, to_float64
from featgan.report.analysis.predictions import OutputSpec
from featgan.report.edits.rendering import FramePredictions, RenderedSweep
from featgan.report.edits.sweeps import Sweep
from featgan.report.sentences import COLOR_CHANGES

MIN_COLOR_CHANGE = 0.1
"""Change of the image's mean color, as a share of the range, that is clearly visible."""

PREFERRED_GROUPS = ("class", "head")
"""Groups of sweeps with one class or output per frame, the most informative first.

The class means come first because the generator was trained on features near them. Features along the weights alone
may be unlike those of any training image, and edits of confidently classified images then fall short.
"""


@dataclass(frozen=True)
class ClassEdit:
    """One edit of one source toward one class or output."""

    text: str  # the output before and after the edit
    is_source_class: bool  # whether it was predicted before; False if the outputs are not exclusive classes
    is_reached: bool  # whether the edit changed the prediction to it


@dataclass(frozen=True)
class ClassEdits:
    """The edits of a sweep toward each class or output, and the classifier's predictions for them."""

    sweep: Sweep
    source_classes: tuple[str, ...]  # predicted class of each source; empty if the outputs are not classes
    edits: tuple[tuple[ClassEdit | None, ...], ...]  # [N][T]; None if the classifier has no such output
    color_changes: Floats  # change of the mean color from source to edit, as shares of the range [N, T, 3]

    def reached_shares(self) -> dict[str, float]:
        """Return, by class, the share of edits that reach it, among sources with another predicted class."""
        if not any(self.source_classes):
            return {}
        columns = zip(self.sweep.headings, zip(*self.edits, strict=True), strict=True)
        reached_by_class = {
            name: [class_edit.is_reached for class_edit in column if class_edit and not class_edit.is_source_class]
            for name, column in columns
        }
        return {name: sum(reached) / len(reached) for name, reached in reached_by_class.items() if reached}

    def describe_color_changes(self) -> dict[str, str]:
        """Return the classes whose edits clearly change the mean color of the image, and how the color changes."""
        change_by_class = {}
        for position, (name, column) in enumerate(zip(self.sweep.headings, zip(*self.edits, strict=True), strict=True)):
            other_sources = [
                index for index, class_edit in enumerate(column) if class_edit and not class_edit.is_source_class
            ]
            color_change = self.color_changes[other_sources, position]
            if other_sources and float(np.median(np.abs(color_change).max(1))) >= MIN_COLOR_CHANGE:
                change_by_class[name] = describe_color_change(np.median(color_change, 0))
        return change_by_class

    def count_reached(self) -> list[int]:
        """Return the number of classes that the edits of each source reach [N]."""
        return [sum(class_edit.is_reached for class_edit in row if class_edit is not None) for row in self.edits]


def build_class_edits(
    renderings: Sequence[RenderedSweep],
    output_spec: OutputSpec | None,
    source_predictions: FramePredictions | None,
    images: Tensor,
) -> ClassEdits | None:
    """Return the edits of the most informative sweep; None if there is none or the outputs have no names."""
    if output_spec is None or source_predictions is None or not output_spec.names:
        return None
    for group in PREFERRED_GROUPS:
        candidates = [
            candidate
            for candidate in renderings
            if candidate.sweep.group == group and candidate.predictions is not None
        ]
        # The classes may be those of the labels, which the classifier need not predict.
        rendering = next(
            (candidate for candidate in candidates if set(candidate.sweep.headings) & set(output_spec.names)), None
        )
        if rendering is not None and rendering.predictions is not None:
            before, after = (
                output_spec.display_values(predictions.outputs)
                for predictions in (source_predictions, rendering.predictions)
            )
            names = rendering.sweep.headings
            edits = tuple(
                tuple(
                    build_class_edit(output_spec, name, source_outputs[0], outputs)
                    for name, outputs in zip(names, frame_outputs, strict=True)
                )
                for source_outputs, frame_outputs in zip(before, after, strict=True)
            )
            color_changes = (rendering.frames.float().mean((3, 4)) - images.float().mean((2, 3))[:, None]) / 255
            source_classes = tuple(predicted_class(output_spec, outputs[0]) for outputs in before)
            return ClassEdits(rendering.sweep, source_classes, edits, to_float64(color_changes))
    return None


def build_class_edit(output_spec: OutputSpec, name: str, before: Floats, after: Floats) -> ClassEdit | None:
    """Compare the displayed outputs [O] before and after the edit toward `name`."""
    if name not in output_spec.names:
        return None
    output = output_spec.names.index(name)
    is_source_class, is_edit_class = (
        output_spec.kind == "expression" and int(np.argmax(values)) == output for values in (before, after)
    )
    text = " \N{RIGHTWARDS ARROW} ".join(
        output_spec.format_value(float(outputs[output])) for outputs in (before, after)
    )
    return ClassEdit(text, is_source_class, is_edit_class and not is_source_class)


def describe_color_change(change: Floats) -> str:
    """Describe a change of the mean red, green and blue by an entry of COLOR_CHANGES."""
    brightness_change = float(change.mean())
    color_changes = zip(("red", "green", "blue"), change - brightness_change, strict=True)
    channels = " ".join(name for name, color_change in color_changes if color_change >= MIN_COLOR_CHANGE / 2)
    brightness = (
        "" if abs(brightness_change) < MIN_COLOR_CHANGE / 2 else "brighter" if brightness_change > 0 else "darker"
    )
    return COLOR_CHANGES.get((channels, brightness), COLOR_CHANGES["", brightness])


def predicted_class(output_spec: OutputSpec, outputs: Floats) -> str:
    """Return the class with the largest of the outputs [O]; empty if the outputs are not classes."""
    return output_spec.names[int(np.argmax(outputs))] if output_spec.kind == "expression" else ""
