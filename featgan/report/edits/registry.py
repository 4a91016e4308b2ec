"""The directions of each kind of condition, by the name that --directions takes."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from featgan.errors import UserError
from featgan.report.edits.label_sweeps import attribute_sweeps, expression_sweeps, valence_arousal_sweeps
from featgan.report.edits.sweeps import (
    Subject,
    Sweep,
    class_sweeps,
    head_sweeps,
    interpolation_sweeps,
    projection_sweeps,
    quantile_sweeps,
    transfer_sweeps,
)

Builder = Callable[[Subject], list[Sweep]]
BUILDERS: dict[str, dict[str, Builder]] = {
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


def build_sweeps(subject: Subject, wanted: Sequence[str] = (), prefix: str = "") -> list[Sweep]:
    """The wanted directions (all that the condition has, by default), in the order of BUILDERS.

    The names of the sweeps' files start with `prefix`.
    UserError when a direction is unknown, does not belong to the condition, or cannot be computed for this run.
    """
    builders = BUILDERS[subject.kind]
    for name in wanted:
        if name not in builders:
            known = ", ".join(builders)
            raise UserError(f"--directions {name}: not a direction of a {subject.kind!r} condition; those are {known}")
    built: list[Sweep] = []
    for name, build in builders.items():
        if not wanted or name in wanted:
            sweeps = build(subject)
            if wanted and not sweeps:
                raise UserError(f"--directions {name}: cannot be computed for this run: {MISSING[name]}")
            built += [replace(sweep, name=prefix + sweep.name) for sweep in sweeps]
    return built


MISSING = {
    "class": "the shards' training images have no class labels",
    "head": "the black box has no linear layer after the features",
    "interpolation": "it takes two images or more",
    "transfer": "it takes two images or more",
}
