"""Measures by region of the request: averages hide failure on rare classes and far ends.

A region is a set of pairs: those that ask for one class, for one octant of the valence-arousal circle, or for one
range of a component.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from featgan.metrics.bootstrap import Booleans, Floats, Integers, Measure, mean_measure, ratio_measure
from featgan.metrics.decisions import NUM_OCTANTS, octants
from featgan.metrics.faithfulness import centred_cosine, gallery_ranks

RANGES = ("below 10 %", "10 to 50 %", "50 to 90 %", "above 90 %")
"""Ranges of a component between its training quantiles."""

RANGE_LEVELS = (0.1, 0.5, 0.9)

Chosen = Callable[[Booleans], Measure]
"""Pairs of a region, [N] => a measure over them."""


@dataclass(frozen=True)
class Region:
    """Pairs whose request lies in one place; `by` is `class`, `octant` or `component K`."""

    by: str
    name: str
    pairs: Booleans  # [N]


def class_regions(labels: Integers, names: Sequence[str]) -> list[Region]:
    """One for each class that is asked for; labels [N], negative where unknown."""
    present = [label for label in np.unique(labels).tolist() if label >= 0]
    named = [names[label] if label < len(names) else str(label) for label in present]
    return [Region("class", name, labels == label) for name, label in zip(named, present, strict=True)]


def octant_regions(points: Floats) -> list[Region]:
    """One for each octant of the valence-arousal circle that is asked for; points [N, 2], unknown where not finite."""
    known = np.asarray(np.isfinite(points).all(1))
    sectors = np.where(known, octants(np.where(known[:, None], points, 0.0)), -1)
    return [Region("octant", str(each + 1), sectors == each) for each in range(NUM_OCTANTS) if (sectors == each).any()]


def component_regions(wanted: Floats, edges: Floats) -> list[Region]:
    """Four ranges of each of K components: whitened requests [N, K], edges [K, 3] at `RANGE_LEVELS`."""
    places = (wanted[:, :, None] >= edges[None]).sum(2)
    return [
        Region(f"component {component + 1}", name, places[:, component] == place)
        for component in range(wanted.shape[1])
        for place, name in enumerate(RANGES)
        if (places[:, component] == place).any()
    ]


def shift_scores(source: Floats, target: Floats, measured: Floats, others: Floats | None = None) -> dict[str, Chosen]:
    """The faithfulness measures that keep their meaning within a region: three standardised [N, L], gallery [G, L].

    Not concordance: within a region requests hardly vary, and it would fall for that reason alone.
    """
    asked = target - source
    products, squares = ((measured - source) * asked).sum(1), (asked**2).sum(1)
    cosines, ranks = centred_cosine(target, measured), gallery_ranks(measured, target, others)
    return {
        "shift_aggregate": lambda pairs: ratio_measure(products[pairs], squares[pairs]),
        "centred_cosine": lambda pairs: mean_measure(cosines[pairs]),
        "retrieval_top1": lambda pairs: mean_measure(ranks[pairs] <= 1),
    }


def component_scores(source: Floats, target: Floats, measured: Floats, component: int) -> dict[str, Chosen]:
    """How far along the asked way one component alone went, and where it arrived: three whitened [N, K]."""
    start, wish, result = (each[:, component] for each in (source, target, measured))
    products, squares = (result - start) * (wish - start), (wish - start) ** 2
    return {
        "own_shift": lambda pairs: ratio_measure(products[pairs], squares[pairs]),
        "asked_mean": lambda pairs: mean_measure(wish[pairs]),
        "measured_mean": lambda pairs: mean_measure(result[pairs]),
    }


def mean_score(values: Floats) -> Chosen:
    """The mean of one number per pair [N]; pairs where it is not finite are left out."""
    return lambda pairs: mean_measure(values[pairs])


def region_table(region: Region, scores: Mapping[str, Chosen]) -> dict[str, Measure]:
    """Every score over the region's pairs."""
    return {name: score(region.pairs) for name, score in scores.items()}
