"""A generator that fails in one region only is found there, whatever its average says."""

import numpy as np
import pytest

from featgan.metrics.bootstrap import Floats
from featgan.metrics.subgroups import (
    Region,
    class_regions,
    component_regions,
    component_scores,
    mean_score,
    octant_regions,
    region_table,
    shift_scores,
)


def features(seed: int, count: int = 200) -> Floats:
    return np.random.default_rng(seed).normal(size=(count, 6))


def by_name(regions: list[Region], scores: Floats) -> dict[str, float]:
    table = {"score": mean_score(scores)}
    return {region.name: region_table(region, table)["score"].value for region in regions}


def test_a_generator_that_copies_for_one_class_alone() -> None:
    source, target = features(0), features(1)
    labels = np.repeat([0, 1, 2, -1], 50)
    measured = np.where(labels[:, None] == 1, source, target)
    regions = class_regions(labels, ("neutral", "happy", "sad"))
    assert [region.name for region in regions] == ["neutral", "happy", "sad"], "an unknown label is no region"
    tables = {region.name: region_table(region, shift_scores(source, target, measured)) for region in regions}
    assert {name: table["shift_aggregate"].value for name, table in tables.items()} == pytest.approx(
        {"neutral": 1, "happy": 0, "sad": 1}
    )
    assert tables["happy"]["retrieval_top1"].value < 0.1 < 1 == tables["sad"]["retrieval_top1"].value
    assert tables["neutral"]["shift_aggregate"].count == 50


def test_a_generator_that_ignores_the_request_goes_nowhere_in_any_region() -> None:
    source, target = features(0), features(1)
    still = np.zeros_like(source)
    for region in class_regions(np.repeat([0, 1], 100), ()):
        table = region_table(region, shift_scores(source, target, still))
        assert table["shift_aggregate"].value == pytest.approx(0.5, abs=0.15), "as the mean vector does"
        assert table["centred_cosine"].value == 0 and table["retrieval_top1"].value <= 0.01


def test_octants_of_known_points() -> None:
    points = np.array([[1, 0.1], [1, 0.2], [-1, -0.1], [np.nan, 0.5]])
    regions = octant_regions(points)
    assert [(region.name, region.pairs.tolist()) for region in regions] == [
        ("1", [True, True, False, False]),
        ("5", [False, False, True, False]),
    ]
    assert by_name(regions, np.array([1.0, 0.0, 0.25, 9.0])) == {"1": 0.5, "5": 0.25}


def test_a_generator_that_stops_at_one_deviation_fails_at_the_far_ends() -> None:
    source, target = np.zeros((400, 2)), np.random.default_rng(0).normal(size=(400, 2))
    measured = np.clip(target, -1, 1)
    edges = np.tile([[-1.28, 0.0, 1.28]], (2, 1))
    regions = component_regions(target, edges)
    assert [region.name for region in regions[:4]] == ["below 10 %", "10 to 50 %", "50 to 90 %", "above 90 %"]
    assert sum(region.pairs.sum() for region in regions[:4]) == 400
    scores = component_scores(source, target, measured, 0)
    shifts = {region.name: region_table(region, scores)["own_shift"].value for region in regions[:4]}
    assert shifts["above 90 %"] < 0.7 > shifts["below 10 %"] and shifts["10 to 50 %"] > 0.9 < shifts["50 to 90 %"]
    far = region_table(regions[3], scores)
    assert far["measured_mean"].value == pytest.approx(1) and far["asked_mean"].value > 1.28
