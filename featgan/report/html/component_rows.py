"""The rows of the ranking, with everything that the page shows about a component."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from torch import Tensor

from featgan.config.metric_specs import METRICS
from featgan.report.analysis.component_ranking import ComponentRanking, RankedComponent
from featgan.report.analysis.visibility import FAINT_CHANGE
from featgan.report.edits.rendering import difference_images
from featgan.report.edits.sources import SourceImages
from featgan.report.figures.charts import draw_response_curve
from featgan.report.figures.data_uris import data_uri, downscale_images
from featgan.report.figures.grids import to_pil_image
from featgan.report.html.summary_text import format_percent, output_change_sentences
from featgan.report.sentences import METRIC_DESCRIPTIONS, SHORT_LIMITATIONS, VISIBILITY_LABELS, fill_sentence

MAX_EFFECTS = 8
MINOR_IMPORTANCE = 0.015
"""Importance below which a row is folded away at first."""
BACKGROUND_BRIGHTNESS = 0.4
"""Brightness of the mean source image under the location map."""


@dataclass(frozen=True)
class DisplayedMetric:
    """A metric as text, with its description and the length of its bar in [0, 1]."""

    name: str
    text: str
    description: str
    share: float | None = None
    note: str = ""
    ideal: str = ""

    @property
    def full_description(self) -> str:
        """The description with the ideal value, if there is one."""
        if not self.ideal:
            return self.description
        return str(fill_sentence("ideal_value", description=self.description, ideal=self.ideal))


@dataclass(frozen=True)
class OutputEffect:
    """The change of an output per standard deviation of a component; `share` is relative to the strongest, signed."""

    name: str
    value: float
    share: float


@dataclass(frozen=True)
class ComponentRow:
    """What the ranking and the card show of one component."""

    component: RankedComponent
    filmstrip: str  # data URI of the source shown first
    location_map: str  # data URI
    metrics: tuple[DisplayedMetric, ...]  # in the ranking and on the card
    detail_metrics: tuple[DisplayedMetric, ...]  # on the card only
    output_effects: tuple[OutputEffect, ...]
    response_curve: Markup | None

    @property
    def limitation(self) -> str:
        return SHORT_LIMITATIONS.get(self.component.limitation, "")

    @property
    def is_minor(self) -> bool:
        """Whether the row is folded away at first because the component hardly affects the output."""
        return self.component.importance is not None and self.component.importance < MINOR_IMPORTANCE

    @property
    def output_change(self) -> str:
        """`neutral → happy`: the outputs that the component lowers and raises; empty if that is not known."""
        raised, lowered = (", ".join(names) for names in self.component.affected_outputs)
        if raised and lowered:
            return f"{lowered} \N{RIGHTWARDS ARROW} {raised}"
        arrow = "\N{UPWARDS ARROW}" if raised else "\N{DOWNWARDS ARROW}"
        return f"{arrow} {raised or lowered}" if raised or lowered else ""

    @property
    def output_change_text(self) -> Markup:
        """The same as a sentence, for screen readers."""
        return Markup(" ").join(output_change_sentences(self.component))


def build_component_rows(
    ranking: ComponentRanking, sources: SourceImages, filmstrips: Mapping[str, str]
) -> list[ComponentRow]:
    """Return a row for each component, in the order of the ranking; the keys of `filmstrips` are names of sweeps."""
    if not ranking.components:
        return []
    mean_image = sources.images.float().mean((0, 1)) / 255
    return [
        ComponentRow(
            component=component,
            filmstrip=filmstrips[component.rendering.sweep.name],
            location_map=draw_location_map(component.change.location_map, mean_image),
            metrics=build_ranking_metrics(component, ranking.uses_total_variation),
            detail_metrics=build_detail_metrics(component),
            output_effects=strongest_effects(component),
            response_curve=None
            if component.measured_values is None
            else draw_response_curve(component.rendering.sweep.values, component.measured_values, component.title),
        )
        for component in ranking.components
    ]


def draw_location_map(changes: Tensor, mean_image: Tensor) -> str:
    """Return the changes [S, S] as a color map over the mean source image [S, S], relative to their maximum."""
    max_change = max(float(changes.max()), FAINT_CHANGE)
    level = (changes / max_change).clamp(0, 1)
    colors = difference_images(changes, max_change).float()
    blended = colors * level.sqrt() + 255 * BACKGROUND_BRIGHTNESS * mean_image * (1 - level.sqrt())
    return data_uri(to_pil_image(downscale_images(blended.round().byte()[None])[0]))


def build_ranking_metrics(component: RankedComponent, uses_total_variation: bool) -> tuple[DisplayedMetric, ...]:
    """Return importance, visibility, slope and cross-talk; a dash stands for an unknown value."""
    change, importance = component.change, component.importance
    return (
        DisplayedMetric(
            "importance",
            "\N{EN DASH}" if importance is None else format_percent(importance),
            METRIC_DESCRIPTIONS["importance" if uses_total_variation else "importance here"],
            importance,
        ),
        DisplayedMetric(
            "visibility",
            format_percent(change.visibility),
            METRIC_DESCRIPTIONS["visibility"],
            change.visibility,
            VISIBILITY_LABELS[change.visibility_grade],
        ),
        build_registry_metric("slope", component.slope),
        build_unit_metric("cross-talk", component.crosstalk, METRIC_DESCRIPTIONS["cross-talk"], "0"),
    )


def build_unit_metric(name: str, value: float | None, description: str, ideal: str) -> DisplayedMetric:
    """Return a metric whose ideal range is [0, 1]; its bar is clipped to that range."""
    if value is None:
        return DisplayedMetric(name, "\N{EN DASH}", description, ideal=ideal)
    text = f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
    return DisplayedMetric(name, text, description, min(1.0, max(0.0, value)), ideal=ideal)


def build_registry_metric(name: str, value: float | None) -> DisplayedMetric:
    """Return a metric with the texts of the metric registry."""
    spec = METRICS[name]
    return build_unit_metric(spec.label, value, spec.description, spec.ideal)


def build_detail_metrics(component: RankedComponent) -> tuple[DisplayedMetric, ...]:
    """Return the metrics that only the card shows."""
    change = component.change
    measured_metrics = [
        build_registry_metric(name, component.metrics[name])
        for name in ("monotonicity", "linearity")
        if name in component.metrics
    ]
    return (
        *measured_metrics,
        DisplayedMetric(
            "mean change", f"{100 * float(change.location_map.mean()):.1f} %", METRIC_DESCRIPTIONS["mean change"]
        ),
        build_registry_metric("edit_low_frequency_share", change.low_frequency_share),
    )


def strongest_effects(component: RankedComponent) -> tuple[OutputEffect, ...]:
    """Return the outputs that the component changes most, from the largest increase to the largest decrease."""
    if component.output_effects is None:
        return ()
    effects = component.output_effects
    strongest = np.argsort(-np.abs(effects), kind="stable")[:MAX_EFFECTS]
    largest = float(np.abs(effects).max()) or 1.0
    ordered = sorted(strongest.tolist(), key=lambda output: -effects[output])
    return tuple(
        OutputEffect(component.output_names[output], float(effects[output]), float(effects[output]) / largest)
        for output in ordered
    )
