"""Directions as sweeps: for every source image a row of requested conditions, with the headings that say what was asked.

Each sweep starts from the sources' own, untouched values, so nothing carries over from one sweep to the next.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from featgan import directions
from featgan.directions import QUANTILE_LEVELS, FeatureSpace
from featgan.errors import UserError

GRID_LEVELS = (0.1, 0.5, 0.9)
"""Quantiles shown on a component's grid; its film shows all of QUANTILE_LEVELS."""
MAX_CLASSES = 16
"""Most targets of a class direction."""
PROJECTION_COUNTS = (0, 1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Subject:
    """What sweeps are computed from: N sources' own values (features [N, F], or label conditions [N, C])."""

    kind: str
    values: Tensor | None
    images: Tensor  # uint8 [N, 3, S, S]
    encode: Callable[[Tensor], Tensor]  # values [M, F or C] => conditions [M, C]
    space: FeatureSpace | None = None
    num_components: int = 10
    class_names: tuple[str, ...] = ()
    class_means: Tensor | None = None  # [num_classes, F]
    head_weight: Tensor | None = None  # [O, F]
    output_names: tuple[str, ...] = ()
    attribute_names: tuple[str, ...] = ()

    @property
    def features(self) -> Tensor:
        assert self.values is not None and self.kind == "features"
        return self.values

    @property
    def feature_space(self) -> FeatureSpace:
        assert self.space is not None
        return self.space


@dataclass(frozen=True)
class Sweep:
    """T requests of each of N sources: conditions [N, T, C]."""

    name: str  # of the files
    group: str  # a key of BUILDERS
    title: str
    headings: tuple[str, ...]  # T
    conditions: Tensor
    details: tuple[str, ...] = ()  # T longer labels for the slider, where headings do not say it all
    note: str = ""
    grid_columns: tuple[int, ...] | None = None  # targets shown on the grid; None: all
    component: int | None = None  # whose quantiles are swept
    film: bool = True  # gets a slider on the page
    ordered: bool = False  # the targets lie on one line: gets an animation
    start: int = 0  # target first shown on the page
    heading_images: Tensor | None = None  # uint8 [T, 3, S, S] above the columns
    goals: Tensor | None = None  # uint8 [N, 3, S, S], what each row moves to
    rows_per_source: int = 1  # a plane of targets: this many rows of each source, from the top
    row_labels: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        return self.details or self.headings

    @property
    def on_grid(self) -> tuple[int, ...]:
        return self.grid_columns if self.grid_columns is not None else tuple(range(len(self.headings)))


def encode(subject: Subject, targets: Tensor) -> Tensor:
    """Values [N, T, F or C] => conditions [N, T, C]."""
    return subject.encode(targets.flatten(0, 1)).unflatten(0, targets.shape[:2])


def quantile_sweeps(subject: Subject) -> list[Sweep]:
    """Every component at its training quantiles, all others as in the source."""
    space = subject.feature_space
    shown = min(subject.num_components, space.num_components)
    return [quantile_sweep(subject, component) for component in range(shown)]


def quantile_sweep(subject: Subject, component: int) -> Sweep:
    space = subject.feature_space
    targets = directions.quantile_sweep(space, subject.features, component, QUANTILE_LEVELS)
    values = [float(space.quantile(level)[component]) for level in QUANTILE_LEVELS]
    headings = tuple(f"{100 * level:.0f} %" for level in QUANTILE_LEVELS)
    return Sweep(
        name=f"component-{component + 1:02d}",
        group="quantiles",
        title=f"Component {component + 1}",
        headings=headings,
        details=tuple(f"{heading} quantile, {signed(value)} deviations" for heading, value in zip(headings, values)),
        conditions=encode(subject, targets),
        note="This component at quantiles of the training features, all other components as in the source.",
        grid_columns=tuple(QUANTILE_LEVELS.index(level) for level in GRID_LEVELS),
        component=component,
        ordered=True,
        start=QUANTILE_LEVELS.index(GRID_LEVELS[-1]),
    )


def signed(value: float) -> str:
    """A number with its sign, two digits, a true minus."""
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def projection_sweeps(subject: Subject) -> list[Sweep]:
    """The first i components of the source, the rest at their mean."""
    space = subject.feature_space
    counts = [*(count for count in PROJECTION_COUNTS if count < space.num_components), space.num_components]
    targets = directions.projections(space, subject.features, counts)
    return [
        Sweep(
            name="projections",
            group="projections",
            title="Components kept",
            headings=tuple(f"first {count}" if count else "none" for count in counts),
            conditions=encode(subject, targets),
            note="Only the first components of the source are kept, the rest are set to their training mean.",
            film=False,
        )
    ]


def interpolation_sweeps(subject: Subject) -> list[Sweep]:
    """From each source's features to the next source's, in four steps."""
    if len(subject.features) < 2:
        return []
    targets = directions.interpolation(subject.features, subject.features.roll(-1, 0), 5)
    return [
        Sweep(
            name="interpolation",
            group="interpolation",
            title="Interpolation to another image",
            headings=tuple(f"{25 * step} %" for step in range(5)),
            conditions=encode(subject, targets),
            note="A straight line from the source's features to those of the next image of the list.",
            ordered=True,
            start=4,
            goals=subject.images.roll(-1, 0),
        )
    ]


def transfer_sweeps(subject: Subject) -> list[Sweep]:
    """Every source with every source's features."""
    count = len(subject.features)
    if count < 2:
        return []
    targets = subject.features[None].expand(count, -1, -1)
    return [
        Sweep(
            name="transfer",
            group="transfer",
            title="Another image's features",
            headings=tuple(f"of {index + 1}" for index in range(count)),
            conditions=encode(subject, targets),
            note="The source (row) is asked to show the features of the image above the column.",
            film=False,
            heading_images=subject.images,
        )
    ]


def class_sweeps(subject: Subject) -> list[Sweep]:
    """Each source shifted by the difference of a class's mean features from the mean over classes."""
    if subject.class_means is None:
        return []
    names = subject.class_names[:MAX_CLASSES]
    targets = directions.toward_class_means(subject.features, subject.class_means)[:, : len(names)]
    note = "The source's features are shifted by a class's mean of the training features, less the mean over classes."
    return [Sweep("class-means", "class", "Towards a class", names, encode(subject, targets), note=note)]


def head_sweeps(subject: Subject) -> list[Sweep]:
    """Each source moved two deviations along the weights of the box's last layer."""
    if subject.head_weight is None:
        return []
    names = subject.output_names[:MAX_CLASSES]
    targets = directions.along_head_weights(subject.feature_space, subject.features, subject.head_weight[: len(names)])
    note = "The source's features are moved two deviations along the weights of the black box's own last layer."
    return [Sweep("head-weights", "head", "Along the last layer's weights", names, encode(subject, targets), note=note)]


def expression_sweeps(subject: Subject) -> list[Sweep]:
    """Every class asked of every source."""
    names = subject.class_names[:MAX_CLASSES]
    targets = torch.eye(len(subject.class_names))[: len(names)].expand(len(subject.images), -1, -1)
    note = "Each class is asked of the source."
    return [Sweep("expressions", "expression", "Expressions", names, encode(subject, targets), note=note)]


VALENCE_AROUSAL_LEVELS = (-1.0, -0.5, 0.0, 0.5, 1.0)


def valence_arousal_sweeps(subject: Subject) -> list[Sweep]:
    """The 5 x 5 grid as a plane, and its two middle lines as films."""
    count = len(subject.images)
    grid = directions.valence_arousal_grid(VALENCE_AROUSAL_LEVELS)  # valence slow, arousal fast
    plane = grid.unflatten(0, (5, 5)).transpose(0, 1).flip(0).flatten(0, 1)  # rows: arousal from the top
    headings = tuple(signed(level) for level in VALENCE_AROUSAL_LEVELS)
    whole = Sweep(
        name="valence-arousal",
        group="valence_arousal",
        title="Valence and arousal",
        headings=tuple(f"valence {heading}" for heading in headings),
        conditions=encode(subject, plane.expand(count, -1, -1)),
        note="Valence from left to right, arousal from bottom to top.",
        film=False,
        rows_per_source=5,
        row_labels=tuple(f"arousal {heading}" for heading in reversed(headings)),
    )
    lines = [axis_sweep(subject, axis, name, headings) for axis, name in enumerate(("valence", "arousal"))]
    return [whole, *lines]


def axis_sweep(subject: Subject, axis: int, name: str, headings: tuple[str, ...]) -> Sweep:
    """One of valence and arousal over its range, the other at 0."""
    targets = torch.zeros(5, 2)
    targets[:, axis] = torch.tensor(VALENCE_AROUSAL_LEVELS)
    conditions = encode(subject, targets.expand(len(subject.images), -1, -1))
    note = f"{name.capitalize()} over its range, the other at 0."
    return Sweep(
        name, "valence_arousal", name.capitalize(), headings, conditions, note=note, ordered=True, start=len(headings) - 1
    )


def attribute_sweeps(subject: Subject) -> list[Sweep]:
    """Each attribute flipped in turn, one hair colour at a time."""
    if subject.values is None:
        raise UserError("--images: attributes are flipped from the source's own, which your images do not have; leave it out")
    names = subject.attribute_names
    targets = directions.attribute_flips(subject.values, names)
    headings = tuple(name.replace("_", " ") for name in names)
    note = "One attribute of the source is flipped, the others stay; of the hair colours, one at a time is set."
    return [Sweep("attributes", "attributes", "Attributes", headings, encode(subject, targets), note=note)]


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
"""The directions of each kind of condition, by the name --directions takes."""


def build_sweeps(subject: Subject, wanted: Sequence[str] | None = None) -> list[Sweep]:
    """The wanted directions (all that the condition has, by default), in the order of BUILDERS.

    UserError when a direction is unknown, does not belong to the condition, or cannot be computed for this run.
    """
    builders = BUILDERS[subject.kind]
    for name in wanted or ():
        if name not in builders:
            known = ", ".join(builders)
            raise UserError(f"--directions {name}: not a direction of a {subject.kind!r} condition; those are {known}")
    built: list[Sweep] = []
    for name, build in builders.items():
        if not wanted or name in wanted:
            sweeps = build(subject)
            if wanted and not sweeps:
                raise UserError(f"--directions {name}: cannot be computed for this run: {MISSING[name]}")
            built += sweeps
    return built


MISSING = {
    "class": "the shards' training images have no class labels",
    "head": "the black box has no linear layer after the features",
    "interpolation": "it takes two images or more",
    "transfer": "it takes two images or more",
}
