"""The directions of each condition kind, by the names that --directions accepts."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from featgan.errors import UserError
from featgan.report.edits.label_sweeps import attribute_sweeps, expression_sweeps, valence_arousal_sweeps
from featgan.report.edits.sweeps import (
    Sweep,
    SweepInputs,
    class_sweeps,
    head_sweeps,
    interpolation_sweeps,
    projection_sweeps,
    quantile_sweeps,
    transfer_sweeps,
)

SweepBuilder = Callable[[SweepInputs], list[Sweep]]
SWEEP_BUILDERS: dict[str, dict[str, SweepBuilder]] = {
    "features": {
        "quantiles": quantile_sweeps,
        "class": class_sweeps,
        "head": head_sweeps,
        "interpolation": interpolation_sweeps,
        "transfer": transfer_sweeps,
        "projections": projection_sweeps,
    },
    "expression": {"expression": expression_sweeps},
    "valence_arousal": {"valence_arousal": valence_arousal_sweeps},
    "attributes": {"attributes": attribute_sweeps},
}

UNAVAILABLE_REASONS = {
    "class": "the shards' training images have no class labels",
    "head": "the classifier has no linear layer after the features",
    "interpolation": "it needs at least two images",
    "transfer": "it needs at least two images",
}
"""Direction => why a run may lack it."""


def build_sweeps(inputs: SweepInputs, requested: Sequence[str] = (), prefix: str = "") -> list[Sweep]:
    """Return the sweeps of the requested directions (all by default), in the order of SWEEP_BUILDERS.

    The names of the sweeps, and so of their files, start with `prefix`.
    Raises UserError if a direction is unknown, does not apply to the condition, or cannot be computed for this run.
    """
    builders = SWEEP_BUILDERS[inputs.kind]
    for name in requested:
        if name not in builders:
            known_names = ", ".join(builders)
            raise UserError(
                f"--directions {name}: not a direction of a {inputs.kind!r} condition; use one of {known_names}"
            )
    sweeps: list[Sweep] = []
    for name, build in builders.items():
        if not requested or name in requested:
            built = build(inputs)
            if requested and not built:
                raise UserError(f"--directions {name}: cannot be computed for this run: {UNAVAILABLE_REASONS[name]}")
            sweeps += [replace(sweep, name=prefix + sweep.name) for sweep in built]
    return sweeps
