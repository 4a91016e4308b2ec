"""What an evaluation finds by region of the request: class, octant of valence and arousal, range of a component."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from featgan.evaluation.edit_metrics import Edits, Family, FeatureSubject
from featgan.metrics.bootstrap import Floats, as_floats
from featgan.metrics.decisions import flip_success, root_mean
from featgan.metrics.predictions import Response, project, standardize
from featgan.metrics.preservation import EditSizes, mean_colours, tint_measure
from featgan.metrics.subgroups import (
    RANGE_LEVELS,
    Chosen,
    Region,
    class_regions,
    component_regions,
    component_scores,
    mean_score,
    octant_regions,
    region_table,
    shift_scores,
)

ByPair = Mapping[str, Mapping[str, Floats]]
"""Further numbers of every pair [N] by column and measure, to be averaged by region."""


@dataclass(frozen=True)
class RegionFamily:
    """One region's measures, for the generator and for every control."""

    by: str  # class, octant or component K
    name: str
    count: int  # pairs
    family: Family


def measure_regions(
    subject: FeatureSubject, edits: Edits, num_components: int, confirmed: Mapping[str, Floats]
) -> list[RegionFamily]:
    """Faithfulness and the edit's size and tint by class and octant, each component's own shift by its ranges.

    `confirmed` by column and pair: whether a witness sees the label asked for.
    """
    scores = request_scores(subject, edits)
    for column, values in confirmed.items():
        scores.setdefault(column, {})["witness_agreement"] = mean_score(values)
    deviations = mean_colours(edits.sources).std(0)
    for column, sizes in edits.sizes.items():
        scores[column] |= picture_scores(sizes, deviations)
    # What real images that give the features asked for differ by, as far as colour goes.
    colours = mean_colours(edits.sources)
    scores["ceiling_mirror"]["tint"] = tint_score(colours[edits.pairs.others] - colours, deviations)
    requests = [*classes_asked(subject, edits), *octants_asked(subject, edits)]
    found = [measure_region(region, scores) for region in requests]
    return found + component_families(subject, edits, num_components)


def measure_region(region: Region, scores: Mapping[str, Mapping[str, Chosen]]) -> RegionFamily:
    family = {column: region_table(region, each) for column, each in scores.items()}
    return RegionFamily(region.by, region.name, int(region.pairs.sum()), family)


def request_scores(subject: FeatureSubject, edits: Edits) -> dict[str, dict[str, Chosen]]:
    """Shift, cosine, retrieval, decisions; for every column."""
    source, target = (standardize(subject.space, each.features) for each in (edits.source, edits.target))
    gallery = standardize(subject.space, subject.cached("validation", edits.pairs.gallery_rows).features)
    return {
        column: shift_scores(source, target, standardize(subject.space, seen.features), gallery)
        | decision_scores(subject.cache.output_kind, edits.source, edits.target, seen)
        for column, seen in edits.seen.items()
    }


def decision_scores(kind: str, source: Response, target: Response, seen: Response) -> dict[str, Chosen]:
    """Flips of an expression box; distance of asked and measured points of a valence and arousal box."""
    if source.outputs is None or target.outputs is None or seen.outputs is None:
        return {}
    if kind == "expression":
        before, asked, after = (each.outputs.argmax(1) for each in (source, target, seen) if each.outputs is not None)
        return {"flip_success": mean_score(flip_success(before, asked, after))}
    if kind == "valence_arousal":
        squares = ((target.outputs - seen.outputs) ** 2).sum(1)
        return {"valence_arousal_rmse": lambda pairs: root_mean(squares[pairs], 0)}
    return {}


def picture_scores(sizes: EditSizes, deviations: Floats) -> dict[str, Chosen]:
    """Size, coarseness and tint of the edits."""
    return {
        "edit_l1": mean_score(sizes.l1),
        "edit_coarse_share": mean_score(sizes.coarse),
        "tint": tint_score(sizes.colour, deviations),
    }


def tint_score(colour: Floats, deviations: Floats) -> Chosen:
    return lambda pairs: tint_measure(colour[pairs], deviations)


def classes_asked(subject: FeatureSubject, edits: Edits) -> list[Region]:
    """By the box's decision for the target image, or by that image's label where the box tells no expressions."""
    if subject.cache.output_kind == "expression" and edits.target.outputs is not None:
        return class_regions(edits.target.outputs.argmax(1), subject.cache.class_names)
    return class_regions(subject.split.expression[edits.pairs.target_rows], subject.shards.classes)


def octants_asked(subject: FeatureSubject, edits: Edits) -> list[Region]:
    """By the box's valence and arousal for the target image, or by that image's labels where it tells none."""
    if subject.cache.output_kind == "valence_arousal" and edits.target.outputs is not None:
        return octant_regions(edits.target.outputs)
    labels = np.stack([subject.split.valence, subject.split.arousal], 1)[edits.pairs.target_rows]
    return octant_regions(as_floats(labels))


def component_families(subject: FeatureSubject, edits: Edits, count: int) -> list[RegionFamily]:
    """Where each component alone is asked to go far, does it?"""
    edges = np.stack([as_floats(subject.space.quantile(level)) for level in RANGE_LEVELS], 1)[:count]
    source, target = (project(subject.space, each.features)[:, :count] for each in (edits.source, edits.target))
    measured = {column: project(subject.space, seen.features)[:, :count] for column, seen in edits.seen.items()}
    found = []
    for region in component_regions(target, edges):
        component = int(region.by.removeprefix("component ")) - 1
        scores = {column: component_scores(source, target, each, component) for column, each in measured.items()}
        found.append(measure_region(region, scores))
    return found
