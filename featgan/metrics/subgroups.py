"""Metrics by subgroup of the targets, because averages can hide errors on rare classes and extreme values.

A subgroup is a set of pairs whose targets are one class, one octant of the valence-arousal circle, or one range of a
component.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from featgan.metrics.bootstrap import Booleans, Estimate, Floats, Integers, bootstrap_mean, bootstrap_ratio
from featgan.metrics.decisions import NUM_OCTANTS, octant_indices
from featgan.metrics.faithfulness import centered_cosine, gallery_ranks

COMPONENT_RANGES = ("below 10 %", "10 to 50 %", "50 to 90 %", "above 90 %")
"""Names of the ranges of a component between its training quantiles."""

RANGE_LEVELS = (0.1, 0.5, 0.9)
"""Levels of the training quantiles that separate the ranges."""

SubgroupScore = Callable[[Booleans], Estimate]
"""Pairs of a subgroup, [N] => an estimate over them."""


@dataclass(frozen=True)
class Subgroup:
    """Pairs with similar targets; `group` is `class`, `octant` or `component K`."""

    group: str
    name: str
    pairs: Booleans  # [N]


def class_subgroups(labels: Integers, names: Sequence[str]) -> list[Subgroup]:
    """Create a subgroup for each target class; labels [N] are negative if unknown."""
    present = [label for label in np.unique(labels).tolist() if label >= 0]
    named = [names[label] if label < len(names) else str(label) for label in present]
    return [Subgroup("class", name, labels == label) for name, label in zip(named, present, strict=True)]


def octant_subgroups(points: Floats) -> list[Subgroup]:
    """Create a subgroup for each octant of the valence-arousal circle that occurs; points [N, 2], NaN if unknown."""
    known = np.asarray(np.isfinite(points).all(1))
    sectors = np.where(known, octant_indices(np.where(known[:, None], points, 0.0)), -1)
    return [
        Subgroup("octant", str(sector + 1), sectors == sector)
        for sector in range(NUM_OCTANTS)
        if (sectors == sector).any()
    ]


def component_subgroups(targets: Floats, edges: Floats) -> list[Subgroup]:
    """Create up to four subgroups for each of K components: whitened targets [N, K], edges [K, 3] at RANGE_LEVELS."""
    range_indices = (targets[:, :, None] >= edges[None]).sum(2)
    return [
        Subgroup(f"component {component + 1}", name, range_indices[:, component] == range_index)
        for component in range(targets.shape[1])
        for range_index, name in enumerate(COMPONENT_RANGES)
        if (range_indices[:, component] == range_index).any()
    ]


def target_progress_scores(
    source: Floats, target: Floats, measured: Floats, distractors: Floats | None = None
) -> dict[str, SubgroupScore]:
    """Return the faithfulness scores that are valid within a subgroup: three standardized [N, L], gallery [G, L].

    Concordance is not one of them: targets hardly vary within a subgroup, which alone would lower it.
    """
    target_change = target - source
    products, squares = ((measured - source) * target_change).sum(1), (target_change**2).sum(1)
    cosines, ranks = centered_cosine(target, measured), gallery_ranks(measured, target, distractors)
    return {
        "target_progress_pooled": lambda pairs: bootstrap_ratio(products[pairs], squares[pairs]),
        "centered_cosine": lambda pairs: bootstrap_mean(cosines[pairs]),
        "retrieval_top1": lambda pairs: bootstrap_mean(ranks[pairs] <= 1),
    }


def component_scores(source: Floats, target: Floats, measured: Floats, component: int) -> dict[str, SubgroupScore]:
    """Return the progress of one component toward its target, and its mean target and measured values.

    Three whitened [N, K].
    """
    source_values, target_values, measured_values = (values[:, component] for values in (source, target, measured))
    products, squares = (
        (measured_values - source_values) * (target_values - source_values),
        (target_values - source_values) ** 2,
    )
    return {
        "component_progress": lambda pairs: bootstrap_ratio(products[pairs], squares[pairs]),
        "target_mean": lambda pairs: bootstrap_mean(target_values[pairs]),
        "measured_mean": lambda pairs: bootstrap_mean(measured_values[pairs]),
    }


def mean_score(values: Floats) -> SubgroupScore:
    """Return the score that is the mean of one value per pair [N]; non-finite values are excluded."""
    return lambda pairs: bootstrap_mean(values[pairs])


def subgroup_metrics(subgroup: Subgroup, scores: Mapping[str, SubgroupScore]) -> dict[str, Estimate]:
    """Compute every score over the pairs of the subgroup."""
    return {name: score(subgroup.pairs) for name, score in scores.items()}
