"""Sweeps of label conditions: every expression, a grid of valence and arousal, flipped attributes."""

import torch

from featgan.errors import UserError
from featgan.features import directions
from featgan.report.edits.sweeps import (
    MAX_CLASSES,
    Sweep,
    SweepInputs,
    add_untrained_note,
    categorical_sweep,
    encode_targets,
)
from featgan.report.sentences import SWEEP_NOTES

AXIS_NAMES = ("valence", "arousal")
VALENCE_AROUSAL_LEVELS = (-1.0, -0.5, 0.0, 0.5, 1.0)


def expression_sweeps(inputs: SweepInputs) -> list[Sweep]:
    """Edit every source toward every class with training images."""
    names = tuple(name for name in inputs.class_names if name not in inputs.untrained)[:MAX_CLASSES]
    rows = [inputs.class_names.index(name) for name in names]
    targets = torch.eye(len(inputs.class_names))[rows].expand(len(inputs.images), -1, -1)
    sweep_info = ("expressions", "expression", "Expressions", SWEEP_NOTES["expression"])
    return [add_untrained_note(inputs, categorical_sweep(inputs, sweep_info, names, targets), inputs.class_names)]


def valence_arousal_sweeps(inputs: SweepInputs) -> list[Sweep]:
    """Return the 5 x 5 grid as a plane, and its two middle lines as films."""
    headings = tuple(f"{level:+g}".replace("-", "\N{MINUS SIGN}") if level else "0" for level in VALENCE_AROUSAL_LEVELS)
    axis_sweeps = [axis_sweep(inputs, axis, name, headings) for axis, name in enumerate(AXIS_NAMES)]
    return [plane_sweep(inputs, headings), *axis_sweeps]


def plane_sweep(inputs: SweepInputs, headings: tuple[str, ...]) -> Sweep:
    """Return the plane with valence from left to right and arousal from bottom to top."""
    num_levels = len(VALENCE_AROUSAL_LEVELS)
    grid = directions.valence_arousal_grid(VALENCE_AROUSAL_LEVELS)  # arousal varies fastest
    plane = grid.reshape(num_levels, num_levels, 2).transpose(0, 1).flip(0).reshape(1, num_levels * num_levels, 2)
    return Sweep(
        name="valence-arousal",
        group="valence_arousal",
        title="Valence and arousal",
        headings=tuple(f"valence {heading}" for heading in headings),
        conditions=encode_targets(inputs, plane.expand(len(inputs.images), -1, -1)),
        note=SWEEP_NOTES["valence_arousal"],
        has_film=False,
        rows_per_source=num_levels,
        row_labels=tuple(f"arousal {heading}" for heading in reversed(headings)),
    )


def axis_sweep(inputs: SweepInputs, axis: int, name: str, headings: tuple[str, ...]) -> Sweep:
    """Sweep valence or arousal over its range; the other is set to 0."""
    targets = torch.zeros(len(headings), 2)
    targets[:, axis] = torch.tensor(VALENCE_AROUSAL_LEVELS)
    return Sweep(
        name=name,
        group="valence_arousal",
        title=name.capitalize(),
        headings=headings,
        conditions=encode_targets(inputs, targets.expand(len(inputs.images), -1, -1)),
        note=SWEEP_NOTES[name],
        is_ordered=True,
        start=len(headings) - 1,
    )


def attribute_sweeps(inputs: SweepInputs) -> list[Sweep]:
    """Flip each attribute in turn; setting a hair color clears the others.

    Raises UserError if the attributes of the sources are not known.
    """
    if inputs.values is None:
        raise UserError(
            "--images: the attributes of these images are not known; remove the option to use validation images"
        )
    targets = directions.attribute_flips(inputs.values, inputs.attribute_names)
    headings = tuple(name.replace("_", " ") for name in inputs.attribute_names)
    sweep_info = ("attributes", "attributes", "Attributes", SWEEP_NOTES["attributes"])
    return [categorical_sweep(inputs, sweep_info, headings, targets)]
