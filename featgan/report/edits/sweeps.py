"""Sweeps: for every source image a row of requested conditions, with the headings that say what was asked.

Each sweep starts from the sources' own, untouched values, so nothing carries over from one sweep to the next.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from featgan.features import directions
from featgan.features.space import FeatureSpace

FILM_LEVELS = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
"""Quantiles that a component's film shows."""
GRID_LEVELS = (0.01, 0.1, 0.5, 0.9, 0.99)
"""Those of them that are shown on its grid."""
MAX_CLASSES = 16
"""Most targets of a class direction."""
MOST_KEPT = 10
"""Up to so many components are kept one by one, then all of them."""
CLASS_AMOUNTS = (1.0, 1.25, 1.5)
"""How far a source is moved towards a class, in distances of the classes' means: no farther than the box asks."""
HEAD_AMOUNTS = (2.0, 2.5, 3.0, 3.5, 4.0)
"""How far along the weights of an answer, in deviations."""
MOST_GIVERS = 8
"""Most images whose features are given to every source."""


@dataclass(frozen=True)
class Subject:
    """What sweeps are computed from: N sources' own values (features [N, F], or label conditions [N, C])."""

    kind: str
    values: Tensor | None
    images: Tensor  # uint8 [N, 3, S, S]
    encode: Callable[[Tensor, Tensor | None], Tensor]  # wanted and own values [M, F or C] => what G takes [M, C]
    space: FeatureSpace | None = None
    num_components: int = 10
    class_names: tuple[str, ...] = ()
    class_means: Mapping[str, Tensor] = field(default_factory=dict)  # class => mean features [F]
    own_classes: tuple[str, ...] = ()  # the box's answers to the sources (N), where classes are its answers
    head_weight: Tensor | None = None  # [O, F]
    head_bias: Tensor | None = None  # [O], of a box that tells one of O classes
    output_names: tuple[str, ...] = ()
    attribute_names: tuple[str, ...] = ()
    component_names: Mapping[int, str] = field(default_factory=dict)  # the user's, by index

    def tells(self, names: Sequence[str]) -> bool:
        """Whether a linear last layer says how sure of each of these answers the box would be."""
        return self.head_bias is not None and all(name in self.output_names for name in names)

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
    """T requests of each of N sources: what G takes [N, T, C]."""

    name: str  # of the files
    group: str  # a direction of the catalogue
    title: str
    headings: tuple[str, ...]  # T
    conditions: Tensor
    details: tuple[str, ...] = ()  # T longer labels for the slider, where headings do not say it all
    note: str = ""
    grid_columns: tuple[int, ...] | None = None  # targets shown on the grid; None: all
    component: int | None = None  # whose quantiles are swept
    values: tuple[float, ...] = ()  # T, what is asked of that component, in deviations
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
    """Wanted values [N, T, F or C] => what G takes [N, T, C]."""
    own = None if subject.values is None else subject.values.repeat_interleave(targets.shape[1], 0)
    return subject.encode(targets.flatten(0, 1), own).unflatten(0, targets.shape[:2])


def quantile_sweeps(subject: Subject) -> list[Sweep]:
    """Every component at its training quantiles, all others as in the source."""
    space = subject.feature_space
    shown = min(subject.num_components, space.num_components)
    return [quantile_sweep(subject, component) for component in range(shown)]


def quantile_sweep(subject: Subject, component: int) -> Sweep:
    space = subject.feature_space
    targets = directions.quantile_sweep(space, subject.features, component, FILM_LEVELS)
    values = tuple(float(space.quantile(level)[component]) for level in FILM_LEVELS)
    headings = tuple(f"{100 * level:.0f} %" for level in FILM_LEVELS)
    return Sweep(
        name=f"component-{component + 1:02d}",
        group="quantiles",
        title=title_of(component, subject.component_names),
        headings=headings,
        details=tuple(
            f"{heading} quantile, {signed(value)} deviations" for heading, value in zip(headings, values, strict=True)
        ),
        conditions=encode(subject, targets),
        note="This component at quantiles of the training features, all other components as in the source.",
        grid_columns=tuple(FILM_LEVELS.index(level) for level in GRID_LEVELS),
        component=component,
        values=values,
        ordered=True,
        start=len(FILM_LEVELS) - 1,
    )


def title_of(component: int, names: Mapping[int, str]) -> str:
    """`Component 3`, with its name where it has one."""
    name = names.get(component)
    return f"Component {component + 1}: {name}" if name else f"Component {component + 1}"


def signed(value: float) -> str:
    """A number with its sign, two digits, a true minus."""
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def projection_sweeps(subject: Subject) -> list[Sweep]:
    """The first i components of the source, the rest at their mean."""
    space = subject.feature_space
    counts = [*range(min(MOST_KEPT + 1, space.num_components)), space.num_components]
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
    """Every source with the features of each of the first MOST_GIVERS sources."""
    if len(subject.features) < 2:
        return []
    givers = subject.features[:MOST_GIVERS]
    targets = givers[None].expand(len(subject.features), -1, -1)
    return [
        Sweep(
            name="transfer",
            group="transfer",
            title="Another image's features",
            headings=tuple(f"of {index + 1}" for index in range(len(givers))),
            conditions=encode(subject, targets),
            note="The source (row) is asked to show the features of the image above the column.",
            film=False,
            heading_images=subject.images[: len(givers)],
        )
    ]


def class_sweeps(subject: Subject) -> list[Sweep]:
    """Each source shifted from the mean features of its own class to those of every other class."""
    if not subject.class_means:
        return []
    names = tuple(subject.class_means)[:MAX_CLASSES]
    means = torch.stack([subject.class_means[name] for name in names])
    places = [names.index(name) if name in names else -1 for name in subject.own_classes]
    own = torch.tensor(places) if places else None
    amounts = CLASS_AMOUNTS if subject.tells(names) else CLASS_AMOUNTS[:1]
    moved = torch.stack([directions.toward_class_means(subject.features, means, amount, own) for amount in amounts])
    if subject.own_classes:
        note = (
            "The source's features, less the mean of its own answer's training pictures, plus that of each other one's"
        )
    else:
        note = "The source's features, less the mean over the classes' training pictures, plus that of each class"
    note += f"; 1 to {amounts[-1]} times, until three quarters sure." if amounts[1:] else "."
    return [
        choice_sweep(subject, ("class-means", "class", "Towards a class", note), names, stop(subject, names, moved))
    ]


def head_sweeps(subject: Subject) -> list[Sweep]:
    """Each source moved along the weights of the box's last layer: two deviations, or until that would answer so."""
    if subject.head_weight is None:
        return []
    names = subject.output_names[:MAX_CLASSES]
    space, features, weight = subject.feature_space, subject.features, subject.head_weight[: len(names)]
    amounts = HEAD_AMOUNTS if subject.tells(names) else HEAD_AMOUNTS[:1]
    note = "The source's features are moved {} along the weights of the black box's own last layer{}."
    if amounts[1:]:
        span = f"{amounts[0]:.0f} to {amounts[-1]:.0f} deviations"
        note = note.format(span, ", until that would be three quarters sure")
    else:
        note = note.format("two deviations", "")
    moved = torch.stack([directions.along_head_weights(space, features, weight, amount) for amount in amounts])
    about = ("head-weights", "head", "Along the last layer's weights", note)
    return [choice_sweep(subject, about, names, stop(subject, names, moved))]


def stop(subject: Subject, names: Sequence[str], moved: Tensor) -> Tensor:
    """Of shifts [A, N, T, F] the first that the last layer would answer to as asked; or the only one."""
    if len(moved) == 1:
        return moved[0]
    assert subject.head_weight is not None and subject.head_bias is not None
    outputs = [subject.output_names.index(name) for name in names]
    return directions.until_answered(moved, outputs, subject.head_weight, subject.head_bias)


def choice_sweep(
    subject: Subject, about: tuple[str, str, str, str], headings: tuple[str, ...], targets: Tensor
) -> Sweep:
    """Targets [N, T, ...] that lie in no order; `about` is name, group, title and note."""
    name, group, title, note = about
    conditions = encode(subject, targets)
    return Sweep(name, group, title, headings, conditions, note=note, start=min(1, len(headings) - 1))
