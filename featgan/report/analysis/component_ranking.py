"""Rank the components of the features by their importance, with their visibility and their effect on the outputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from featgan.features.space import FeatureSpace
from featgan.metrics import traversal
from featgan.metrics.bootstrap import Floats
from featgan.metrics.predictions import project_features
from featgan.report.analysis.component_facts import ComponentFacts
from featgan.report.analysis.predictions import OutputSpec, most_affected_outputs
from featgan.report.analysis.visibility import PixelChange
from featgan.report.edits.rendering import RenderedSweep

MIN_RESPONSIVE_SLOPE = 0.1
"""Slope below which the classifier does not respond to the edits of a component."""
MIN_IMPORTANCE = 0.05
"""Share of the output variance from which a component counts as important."""


@dataclass(frozen=True)
class RankedComponent:
    """One component as the report shows it; None stands for an unknown value."""

    index: int
    name: str  # given by the user, or empty
    rendering: RenderedSweep
    change: PixelChange
    output_effects: Floats | None  # change of each output per standard deviation [O]
    output_names: tuple[str, ...]  # O
    importance: float | None  # share of the output variance
    metrics: Mapping[str, float]  # slope, cross-talk, monotonicity, linearity; unmeasured ones are missing
    measured_values: Floats | None  # whitened component of the frames [N, T]

    @property
    def title(self) -> str:
        return self.name or f"Component {self.index + 1}"

    @property
    def slope(self) -> float | None:
        return self.metrics.get("slope")

    @property
    def crosstalk(self) -> float | None:
        return self.metrics.get("cross-talk")

    @cached_property
    def affected_outputs(self) -> tuple[list[str], list[str]]:
        """The outputs that increase and those that decrease as the component increases."""
        return (
            ([], []) if self.output_effects is None else most_affected_outputs(self.output_effects, self.output_names)
        )

    @property
    def is_responsive(self) -> bool:
        """Whether the classifier responds to the edits; True if that is not known."""
        return self.slope is None or self.slope >= MIN_RESPONSIVE_SLOPE

    @property
    def is_conclusive(self) -> bool:
        """Whether the change is visible and the classifier responds to it."""
        return self.change.visibility_grade != "none" and self.is_responsive

    @property
    def is_important(self) -> bool:
        """Whether the component affects the output; True if that is not known."""
        return self.importance is None or self.importance >= MIN_IMPORTANCE

    @property
    def limitation(self) -> str:
        """Why nothing can be concluded: `invisible`, `unresponsive`, `invisible_and_unresponsive` or empty."""
        if self.is_conclusive:
            return ""
        if self.change.visibility_grade == "none":
            return "invisible" if self.is_responsive else "invisible_and_unresponsive"
        return "unresponsive"


@dataclass(frozen=True)
class ComponentRanking:
    """All components, the most important first."""

    components: list[RankedComponent]  # in descending order of importance
    uses_total_variation: bool  # importances are shares of the total variance, not of what these components explain
    num_evaluated_images: int | None = (
        None  # number of images behind the metrics; None if they are the images of the page
    )
    crosstalk: Floats | None = None  # measured on the images of the page [K, M]
    is_importance_measured: bool = False  # on the images of the page; otherwise computed from the last layer

    @property
    def explained_share(self) -> float | None:
        """Share of the output variance that these components explain; None if that is not known."""
        shares = [component.importance for component in self.components if component.importance is not None]
        return min(1.0, sum(shares)) if self.uses_total_variation and shares else None


def rank_components(
    renderings: Sequence[RenderedSweep], facts: ComponentFacts, output_spec: OutputSpec | None
) -> ComponentRanking:
    """Rank the swept components by importance.

    Their metrics come from the evaluation if it has all of these components, else from the images of the page.
    """
    swept = [rendering for rendering in renderings if rendering.sweep.component is not None]
    measured_values = measure_components(swept, facts.space)
    output_effects = compute_output_effects(swept, facts, output_spec)
    importances, uses_total_variation = compute_importances(output_effects, output_spec)
    matrix = (
        None if measured_values is None else traversal.crosstalk_matrix(stack_target_values(swept), measured_values)
    )
    evaluated_metrics = [facts.component_metrics(rendering.sweep.component or 0) for rendering in swept]
    is_evaluated = bool(evaluated_metrics) and all(evaluated_metrics)
    metrics = evaluated_metrics if is_evaluated else compute_page_metrics(swept, measured_values, matrix)
    components = [
        RankedComponent(
            index=rendering.sweep.component or 0,
            name=facts.names.get(rendering.sweep.component or 0, ""),
            rendering=rendering,
            change=PixelChange.from_rendering(rendering),
            output_effects=None if output_effects is None else output_effects[position],
            output_names=output_spec.names if output_spec else (),
            importance=None if importances is None else float(importances[position]),
            metrics=metrics[position],
            measured_values=None
            if measured_values is None
            else measured_values[:, position, :, rendering.sweep.component],
        )
        for position, rendering in enumerate(swept)
    ]
    components.sort(key=lambda component: (-(component.importance or 0.0), -component.change.visibility))
    return ComponentRanking(
        components,
        uses_total_variation,
        facts.num_evaluated_images if is_evaluated else None,
        matrix,
        is_importance_measured=importances is not None and facts.head_weight is None,
    )


def measure_components(swept: Sequence[RenderedSweep], space: FeatureSpace | None) -> Floats | None:
    """Return the whitened components of every frame of K sweeps [N, K, T, M]; None without predictions."""
    if space is None or not swept:
        return None
    predictions = [rendering.predictions for rendering in swept]
    if any(prediction is None for prediction in predictions):
        return None
    features = np.stack([frames.features for frames in predictions if frames is not None], 1)
    return project_features(space, features.reshape(-1, features.shape[-1])).reshape(*features.shape[:-1], -1)


def stack_target_values(swept: Sequence[RenderedSweep]) -> Floats:
    """Return the target values of each component, in standard deviations [K, T]."""
    return np.array([rendering.sweep.values for rendering in swept])


def compute_page_metrics(
    swept: Sequence[RenderedSweep], measured_values: Floats | None, matrix: Floats | None
) -> list[dict[str, float]]:
    """Return the metrics of each component on the images of the page; `matrix` is their cross-talk [K, M]."""
    if measured_values is None or matrix is None:
        return [{} for _ in swept]
    component_indices, targets = [rendering.sweep.component or 0 for rendering in swept], stack_target_values(swept)
    metrics_by_position = []
    for position, index in enumerate(component_indices):
        responses = measured_values[:, position, :, index]
        metrics = {
            "slope": matrix[position, index],
            "cross-talk": off_diagonal_share(matrix[position, component_indices], position),
            "monotonicity": traversal.spearman_correlation(targets[position], responses).mean(),
            "linearity": traversal.linear_fit_r2(targets[position], responses).mean(),
        }
        metrics_by_position.append({name: float(value) for name, value in metrics.items()})
    return metrics_by_position


def off_diagonal_share(row: Floats, diagonal_index: int) -> float:
    """Return the share of a row of the cross-talk matrix outside `diagonal_index`."""
    total = float(np.abs(row).sum())
    return 1 - float(abs(row[diagonal_index])) / total if total else 1.0


def compute_output_effects(
    swept: Sequence[RenderedSweep], facts: ComponentFacts, output_spec: OutputSpec | None
) -> Floats | None:
    """Return the change of each comparable output per standard deviation of each component [K, O].

    It is computed from the classifier's linear head, or, without one, measured in the frames.
    """
    if output_spec is None or not swept:
        return None
    indices = [rendering.sweep.component or 0 for rendering in swept]
    if facts.space is not None and facts.head_weight is not None:
        return output_spec.center_outputs(facts.output_effects()[indices])
    predictions = [rendering.predictions for rendering in swept]
    if any(prediction is None for prediction in predictions):
        return None
    outputs = np.stack([output_spec.center_outputs(frames.outputs) for frames in predictions if frames is not None], 1)
    targets = stack_target_values(swept)
    slopes = [
        traversal.sweep_slopes(targets[position][None, None], outputs[:, position : position + 1])
        for position in range(len(swept))
    ]
    return np.stack([component_slopes.mean((0, 1)) for component_slopes in slopes])


def compute_importances(effects: Floats | None, output_spec: OutputSpec | None) -> tuple[Floats | None, bool]:
    """Return the importance of each component [K], and whether it is a share of the total output variance.

    If the variance of the outputs is not known, the importances of the components shown add up to 1.
    """
    if effects is None or output_spec is None:
        return None, False
    importances = output_spec.component_importance(effects)
    if importances is not None:
        return np.minimum(importances, 1.0), True
    squares = np.square(effects).sum(1)
    return squares / max(float(squares.sum()), 1e-12), False
