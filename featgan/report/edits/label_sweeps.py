"""Sweeps of label conditions: every expression, the valence-arousal grid, flipped attributes."""

import torch

from featgan.errors import UserError
from featgan.features import directions
from featgan.report.edits.sweeps import MAX_CLASSES, Subject, Sweep, choice_sweep, encode

VALENCE_AROUSAL_LEVELS = (-1.0, -0.5, 0.0, 0.5, 1.0)


def expression_sweeps(subject: Subject) -> list[Sweep]:
    """Every class asked of every source."""
    names = subject.class_names[:MAX_CLASSES]
    targets = torch.eye(len(subject.class_names))[: len(names)].expand(len(subject.images), -1, -1)
    about = ("expressions", "expression", "Expressions", "Each class is asked of the source.")
    return [choice_sweep(subject, about, names, targets)]


def valence_arousal_sweeps(subject: Subject) -> list[Sweep]:
    """The 5 x 5 grid as a plane, and its two middle lines as films."""
    headings = tuple(f"{level:+g}".replace("-", "\N{MINUS SIGN}") if level else "0" for level in VALENCE_AROUSAL_LEVELS)
    lines = [axis_sweep(subject, axis, name, headings) for axis, name in enumerate(("valence", "arousal"))]
    return [plane_sweep(subject, headings), *lines]


def plane_sweep(subject: Subject, headings: tuple[str, ...]) -> Sweep:
    """Valence from left to right, arousal from bottom to top."""
    count = len(VALENCE_AROUSAL_LEVELS)
    grid = directions.valence_arousal_grid(VALENCE_AROUSAL_LEVELS)  # valence slow, arousal fast
    plane = grid.reshape(count, count, 2).transpose(0, 1).flip(0).reshape(1, count * count, 2)
    return Sweep(
        name="valence-arousal",
        group="valence_arousal",
        title="Valence and arousal",
        headings=tuple(f"valence {heading}" for heading in headings),
        conditions=encode(subject, plane.expand(len(subject.images), -1, -1)),
        note="Valence from left to right, arousal from bottom to top.",
        film=False,
        rows_per_source=count,
        row_labels=tuple(f"arousal {heading}" for heading in reversed(headings)),
    )


def axis_sweep(subject: Subject, axis: int, name: str, headings: tuple[str, ...]) -> Sweep:
    """One of valence and arousal over its range, the other at 0."""
    targets = torch.zeros(len(headings), 2)
    targets[:, axis] = torch.tensor(VALENCE_AROUSAL_LEVELS)
    return Sweep(
        name=name,
        group="valence_arousal",
        title=name.capitalize(),
        headings=headings,
        conditions=encode(subject, targets.expand(len(subject.images), -1, -1)),
        note=f"{name.capitalize()} over its range, the other at 0.",
        ordered=True,
        start=len(headings) - 1,
    )


def attribute_sweeps(subject: Subject) -> list[Sweep]:
    """Each attribute flipped in turn, one hair colour at a time; UserError where the sources' own are unknown."""
    if subject.values is None:
        raise UserError("--images: attributes are flipped from the source's own, which these images do not have")
    targets = directions.attribute_flips(subject.values, subject.attribute_names)
    headings = tuple(name.replace("_", " ") for name in subject.attribute_names)
    note = "One attribute of the source is flipped, the others stay; of the hair colours, one at a time is set."
    return [choice_sweep(subject, ("attributes", "attributes", "Attributes", note), headings, targets)]
