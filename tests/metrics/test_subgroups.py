"""Tests of subgroup metrics: a failure in one subgroup is visible there."""

import numpy as np
import pytest

from featgan.metrics.bootstrap import Floats
from featgan.metrics.subgroups import (
    Subgroup,
    class_subgroups,
    component_scores,
    component_subgroups,
    mean_score,
    octant_subgroups,
    subgroup_metrics,
    target_progress_scores,
)


def random_features(seed: int, count: int = 200) -> Floats:
    return np.random.default_rng(seed).normal(size=(count, 6))


def subgroups_by_name(subgroups: list[Subgroup], scores: Floats) -> dict[str, float]:
    table = {"score": mean_score(scores)}
    return {subgroup.name: subgroup_metrics(subgroup, table)["score"].value for subgroup in subgroups}


def test_a_generator_that_copies_the_source_for_one_class() -> None:
    source, target = random_features(0), random_features(1)
    labels = np.repeat([0, 1, 2, -1], 50)
    measured = np.where(labels[:, None] == 1, source, target)
    subgroups = class_subgroups(labels, ("neutral", "happy", "sad"))
    assert [subgroup.name for subgroup in subgroups] == ["neutral", "happy", "sad"], (
        "an unknown label is not a subgroup"
    )
    tables = {
        subgroup.name: subgroup_metrics(subgroup, target_progress_scores(source, target, measured))
        for subgroup in subgroups
    }
    assert {name: table["target_progress_pooled"].value for name, table in tables.items()} == pytest.approx(
        {"neutral": 1, "happy": 0, "sad": 1}
    )
    assert tables["happy"]["retrieval_top1"].value < 0.1 < 1 == tables["sad"]["retrieval_top1"].value
    assert tables["neutral"]["target_progress_pooled"].count == 50


def test_a_generator_that_ignores_the_target_makes_no_progress_in_any_subgroup() -> None:
    source, target = random_features(0), random_features(1)
    training_mean = np.zeros_like(source)
    for subgroup in class_subgroups(np.repeat([0, 1], 100), ()):
        table = subgroup_metrics(subgroup, target_progress_scores(source, target, training_mean))
        assert table["target_progress_pooled"].value == pytest.approx(0.5, abs=0.15), "the value of the training mean"
        assert table["centered_cosine"].value == 0 and table["retrieval_top1"].value <= 0.01


def test_octants_of_known_points() -> None:
    points = np.array([[1, 0.1], [1, 0.2], [-1, -0.1], [np.nan, 0.5]])
    subgroups = octant_subgroups(points)
    assert [(subgroup.name, subgroup.pairs.tolist()) for subgroup in subgroups] == [
        ("1", [True, True, False, False]),
        ("5", [False, False, True, False]),
    ]
    assert subgroups_by_name(subgroups, np.array([1.0, 0.0, 0.25, 9.0])) == {"1": 0.5, "5": 0.25}


def test_a_generator_limited_to_one_standard_deviation_fails_for_extreme_targets() -> None:
    source, target = np.zeros((400, 2)), np.random.default_rng(0).normal(size=(400, 2))
    measured = np.clip(target, -1, 1)
    edges = np.tile([[-1.28, 0.0, 1.28]], (2, 1))
    subgroups = component_subgroups(target, edges)
    assert [subgroup.name for subgroup in subgroups[:4]] == ["below 10 %", "10 to 50 %", "50 to 90 %", "above 90 %"]
    assert sum(subgroup.pairs.sum() for subgroup in subgroups[:4]) == 400
    scores = component_scores(source, target, measured, 0)
    progress = {
        subgroup.name: subgroup_metrics(subgroup, scores)["component_progress"].value for subgroup in subgroups[:4]
    }
    assert progress["above 90 %"] < 0.7 > progress["below 10 %"]
    assert progress["10 to 50 %"] > 0.9 < progress["50 to 90 %"]
    extreme = subgroup_metrics(subgroups[3], scores)
    assert extreme["measured_mean"].value == pytest.approx(1) and extreme["target_mean"].value > 1.28
