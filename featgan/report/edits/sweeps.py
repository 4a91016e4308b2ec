"""Sweeps: a row of target conditions for every source image, with headings that describe the targets.

Each sweep starts from the source values, so no change carries over from one sweep to the next.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from featgan.features import directions
from featgan.features.space import FeatureSpace
from featgan.report.sentences import SWEEP_NOTES, SWEEP_SUMMARIES

FILM_QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
"""Quantiles of a component that its film shows."""
GRID_QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
"""Quantiles of a component that its grid shows."""
MAX_CLASSES = 16
"""Maximum number of targets of a class direction."""
MAX_KEPT_COMPONENTS = 10
"""The projections keep 0, 1, ... this many components, then all of them."""
CLASS_AMOUNTS = (1.0, 1.25, 1.5)
"""Factors of the shift between class means.

The smallest one that gives the target class a probability of MIN_CONFIDENCE by the classifier's last layer is used.
"""
HEAD_AMOUNTS = (2.0, 2.5, 3.0, 3.5, 4.0)
"""Lengths of the shift along an output's weights, in standard deviations; used as CLASS_AMOUNTS."""
MAX_DONORS = 8
"""Maximum number of images whose features are transferred to every source."""


@dataclass(frozen=True)
class SweepInputs:
    """What sweeps are computed from; the values of N sources are features [N, F] or label conditions [N, C]."""

    kind: str
    values: Tensor | None
    images: Tensor  # uint8 [N, 3, S, S]
    encode: Callable[[Tensor, Tensor | None], Tensor]  # (target, source) [M, F or C] => condition input of G [M, C]
    space: FeatureSpace | None = None
    num_components: int = 10
    class_names: tuple[str, ...] = ()
    class_means: Mapping[str, Tensor] = field(default_factory=dict)  # class => mean features [F]
    source_classes: tuple[str, ...] = ()  # predictions for the sources (N), if the classes are those of the classifier
    head_weight: Tensor | None = None  # [O, F]
    head_bias: Tensor | None = None  # [O], only if the classifier predicts one of O classes
    output_names: tuple[str, ...] = ()
    attribute_names: tuple[str, ...] = ()
    component_names: Mapping[int, str] = field(default_factory=dict)  # given by the user, by index
    untrained: frozenset[str] = frozenset()  # classes and outputs without training images, which get no edits

    def has_logits_for(self, names: Sequence[str]) -> bool:
        """Whether the linear head computes a logit for each of these classes."""
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
    """T targets for each of N sources, as condition inputs of G [N, T, C]."""

    name: str  # also the name of its files
    group: str  # direction of the registry
    title: str
    headings: tuple[str, ...]  # T
    conditions: Tensor
    details: tuple[str, ...] = ()  # T longer labels for the slider, if the headings are too short
    note: str = ""
    summary: str = ""  # how edits toward each class are made, for the top of the page
    grid_columns: tuple[int, ...] | None = None  # targets shown on the grid; None for all
    component: int | None = None  # index of the component that is swept
    values: tuple[float, ...] = ()  # T target values of that component, in standard deviations
    has_film: bool = True  # the page has a slider
    is_ordered: bool = False  # the targets are on a line: an animation is written
    start: int = 0  # index of the target that the page shows first
    heading_images: Tensor | None = None  # uint8 [T, 3, S, S] above the columns
    goal_images: Tensor | None = None  # uint8 [N, 3, S, S], the image that each row is edited toward
    rows_per_source: int = 1  # number of rows of a plane of targets, from the top
    row_labels: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        return self.details or self.headings

    @property
    def grid_targets(self) -> tuple[int, ...]:
        return self.grid_columns if self.grid_columns is not None else tuple(range(len(self.headings)))


def encode_targets(inputs: SweepInputs, targets: Tensor) -> Tensor:
    """Encode target values [N, T, F or C] => condition inputs of G [N, T, C]."""
    source_values = None if inputs.values is None else inputs.values.repeat_interleave(targets.shape[1], 0)
    return inputs.encode(targets.flatten(0, 1), source_values).unflatten(0, targets.shape[:2])


def quantile_sweeps(inputs: SweepInputs) -> list[Sweep]:
    """Sweep every component over its training quantiles; all others stay as in the source."""
    space = inputs.feature_space
    num_components = min(inputs.num_components, space.num_components)
    return [component_quantile_sweep(inputs, component) for component in range(num_components)]


def component_quantile_sweep(inputs: SweepInputs, component: int) -> Sweep:
    space = inputs.feature_space
    targets = directions.quantile_sweep(space, inputs.features, component, FILM_QUANTILES)
    values = tuple(float(space.quantile(level)[component]) for level in FILM_QUANTILES)
    headings = tuple(f"{100 * level:.0f} %" for level in FILM_QUANTILES)
    return Sweep(
        name=f"component-{component + 1:02d}",
        group="quantiles",
        title=component_title(component, inputs.component_names),
        headings=headings,
        details=tuple(
            f"{heading} quantile, {format_signed(value)} SD" for heading, value in zip(headings, values, strict=True)
        ),
        conditions=encode_targets(inputs, targets),
        note=SWEEP_NOTES["quantiles"],
        grid_columns=tuple(FILM_QUANTILES.index(level) for level in GRID_QUANTILES),
        component=component,
        values=values,
        is_ordered=True,
        start=len(FILM_QUANTILES) - 1,
    )


def component_title(component: int, names: Mapping[int, str]) -> str:
    """Return `Component 3`, or `Component 3: smile` if it has a name."""
    name = names.get(component)
    return f"Component {component + 1}: {name}" if name else f"Component {component + 1}"


def format_signed(value: float) -> str:
    """Return a number with its sign, two decimals and a true minus sign."""
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def projection_sweeps(inputs: SweepInputs) -> list[Sweep]:
    """Keep the first i components of the source; the others take their training mean."""
    space = inputs.feature_space
    counts = [*range(min(MAX_KEPT_COMPONENTS + 1, space.num_components)), space.num_components]
    targets = directions.leading_component_projections(space, inputs.features, counts)
    return [
        Sweep(
            name="projections",
            group="projections",
            title="Components kept",
            headings=tuple(f"first {count}" if count else "none" for count in counts),
            conditions=encode_targets(inputs, targets),
            note=SWEEP_NOTES["projections"],
            has_film=False,
        )
    ]


def interpolation_sweeps(inputs: SweepInputs) -> list[Sweep]:
    """Interpolate from each source's features to those of the next source, in four steps."""
    if len(inputs.features) < 2:
        return []
    targets = directions.interpolate_features(inputs.features, inputs.features.roll(-1, 0), 5)
    return [
        Sweep(
            name="interpolation",
            group="interpolation",
            title="Interpolation to another image",
            headings=tuple(f"{25 * step} %" for step in range(5)),
            conditions=encode_targets(inputs, targets),
            note=SWEEP_NOTES["interpolation"],
            is_ordered=True,
            start=4,
            goal_images=inputs.images.roll(-1, 0),
        )
    ]


def transfer_sweeps(inputs: SweepInputs) -> list[Sweep]:
    """Edit every source toward the features of each of the first MAX_DONORS sources."""
    if len(inputs.features) < 2:
        return []
    donors = inputs.features[:MAX_DONORS]
    targets = donors[None].expand(len(inputs.features), -1, -1)
    return [
        Sweep(
            name="transfer",
            group="transfer",
            title="Edits toward another image's features",
            headings=tuple(f"image {index + 1}" for index in range(len(donors))),
            conditions=encode_targets(inputs, targets),
            note=SWEEP_NOTES["transfer"],
            has_film=False,
            heading_images=inputs.images[: len(donors)],
        )
    ]


def class_sweeps(inputs: SweepInputs) -> list[Sweep]:
    """Shift each source by the difference between the mean features of every class and of its predicted class."""
    if not inputs.class_means:
        return []
    names = tuple(name for name in inputs.class_means if name not in inputs.untrained)[:MAX_CLASSES]
    means = torch.stack([inputs.class_means[name] for name in names])
    class_indices = [names.index(name) if name in names else -1 for name in inputs.source_classes]
    source_indices = torch.tensor(class_indices) if class_indices else None
    amounts = CLASS_AMOUNTS if inputs.has_logits_for(names) else CLASS_AMOUNTS[:1]
    shifts = torch.stack(
        [directions.shift_toward_class_means(inputs.features, means, amount, source_indices) for amount in amounts]
    )
    kind = "predicted_class" if inputs.source_classes else "labeled_class"
    note = " ".join(SWEEP_NOTES[name] for name in ((kind, "class_factor") if amounts[1:] else (kind,)))
    sweep_info = ("class-means", "class", "Edits by class means", fill_amounts(note, amounts))
    sweep = categorical_sweep(inputs, sweep_info, names, choose_shift(inputs, names, shifts))
    sweep = add_untrained_note(inputs, sweep, tuple(inputs.class_means))
    return [replace(sweep, summary=fill_amounts(SWEEP_SUMMARIES[kind], CLASS_AMOUNTS))]


def head_sweeps(inputs: SweepInputs) -> list[Sweep]:
    """Move each source along the weights of every output of the classifier's linear head.

    The move is two standard deviations. If the head computes class logits, the move ends when the probability of the
    target class is at least MIN_CONFIDENCE.
    """
    if inputs.head_weight is None:
        return []
    names = tuple(name for name in inputs.output_names if name not in inputs.untrained)[:MAX_CLASSES]
    if not names:
        return []
    rows = [inputs.output_names.index(name) for name in names]
    space, features, weight = inputs.feature_space, inputs.features, inputs.head_weight[rows]
    amounts = HEAD_AMOUNTS if inputs.has_logits_for(names) else HEAD_AMOUNTS[:1]
    note = fill_amounts(SWEEP_NOTES["head_confident" if amounts[1:] else "head_fixed"], amounts)
    shifts = torch.stack([directions.shift_along_head_weights(space, features, weight, amount) for amount in amounts])
    sweep_info = ("head-weights", "head", "Edits by last-layer weights", note)
    sweep = categorical_sweep(inputs, sweep_info, names, choose_shift(inputs, names, shifts))
    return [replace(add_untrained_note(inputs, sweep, inputs.output_names), summary=SWEEP_SUMMARIES["head"])]


def add_untrained_note(inputs: SweepInputs, sweep: Sweep, names: Sequence[str]) -> Sweep:
    """Add to the note which of these classes have no edits, because no training image shows them."""
    missing = [name for name in names if name in inputs.untrained]
    if not missing:
        return sweep
    sentence = SWEEP_NOTES["untrained"].format(classes=", ".join(missing))
    return replace(sweep, note=f"{sweep.note} {sentence}")


def fill_amounts(text: str, amounts: Sequence[float]) -> str:
    """Fill the placeholders for the smallest and the largest amount of a shift, and for its minimum probability."""
    low, high = f"{min(amounts):g}", f"{max(amounts):g}"
    probability = f"{100 * directions.MIN_CONFIDENCE:.0f} %"
    return text.format(min_amount=low, max_amount=high, probability=probability)


def choose_shift(inputs: SweepInputs, names: Sequence[str], shifts: Tensor) -> Tensor:
    """Return, of the shifts [A, N, T, F], the first that gives the target class enough probability: [N, T, F]."""
    if len(shifts) == 1:
        return shifts[0]
    assert inputs.head_weight is not None and inputs.head_bias is not None
    outputs = [inputs.output_names.index(name) for name in names]
    return directions.smallest_confident_shift(shifts, outputs, inputs.head_weight, inputs.head_bias)


def categorical_sweep(
    inputs: SweepInputs, sweep_info: tuple[str, str, str, str], headings: tuple[str, ...], targets: Tensor
) -> Sweep:
    """Return a sweep over unordered targets [N, T, ...]; `sweep_info` is name, group, title and note."""
    name, group, title, note = sweep_info
    conditions = encode_targets(inputs, targets)
    return Sweep(name, group, title, headings, conditions, note=note, start=min(1, len(headings) - 1))
