"""Generators whose faithfulness is known get the numbers they deserve."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from featgan.features.space import FeatureSpace
from featgan.metrics.baselines import nearest_rows
from featgan.metrics.bootstrap import Floats, resample_weights
from featgan.metrics.faithfulness import (
    agreement_table,
    centred_cosine,
    concordance,
    faithfulness_table,
    gallery_ranks,
    relative_shift,
    retrieval_ranks,
    shift_table,
    varying,
    weighted_r2,
)
from featgan.metrics.predictions import Response, standardize
from featgan.system.statistics import concordance as training_concordance

DEAD = 3
"""The feature that never fires."""


def some_features(count: int, seed: int) -> Floats:
    """Correlated features of unequal scale, one of them dead."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(count, 8)) @ np.random.default_rng(99).normal(size=(8, 8)) + 3
    features[:, DEAD] = 0
    return features


@pytest.fixture(scope="module")
def space() -> FeatureSpace:
    return FeatureSpace.fit(torch.from_numpy(some_features(500, 0)))


@pytest.fixture(scope="module")
def source() -> Response:
    return Response.of(some_features(200, 1))


@pytest.fixture(scope="module")
def target() -> Response:
    return Response.of(some_features(200, 2))


def test_a_perfect_generator(space: FeatureSpace, source: Response, target: Response) -> None:
    table = faithfulness_table(space, source, target, target)
    for name in ("shift", "shift_median", "shift_aggregate", "ccc", "r2", "centred_cosine", "components_ccc"):
        assert table[name].value == pytest.approx(1), name
    for name in ("retrieval_top1", "retrieval_top5", "retrieval_mrr", "component_01_ccc"):
        assert table[name].value == pytest.approx(1), name
    assert table["residue"].value == pytest.approx(0, abs=1e-9)
    assert table["retrieval_gallery"].value == 200


def test_a_generator_that_copies(space: FeatureSpace, source: Response, target: Response) -> None:
    table = faithfulness_table(space, source, target, source)
    for name in ("shift", "shift_median", "shift_aggregate", "residue"):
        assert table[name].value == 0, name
    assert abs(table["ccc"].value) < 0.2
    assert table["r2"].value < 0
    assert table["retrieval_top1"].value < 0.05


def test_a_generator_that_ignores_the_condition(space: FeatureSpace, source: Response, target: Response) -> None:
    ignoring = Response(np.tile(target.features[:1], (200, 1)))
    table = faithfulness_table(space, source, target, ignoring)
    assert table["ccc"].value == pytest.approx(0, abs=1e-9)
    assert table["r2"].value <= 0
    assert table["retrieval_top1"].value == pytest.approx(1 / 200)
    assert 0 < table["shift"].value < 0.8, "any plausible vector lies some way towards any request"


def test_the_nearest_real_image_is_between_copy_and_perfect(
    space: FeatureSpace, source: Response, target: Response
) -> None:
    training = some_features(3000, 3)
    rows = nearest_rows(space, target.features, training)
    table = faithfulness_table(space, source, target, Response(training[rows]))
    assert 0.7 < table["shift_aggregate"].value < 1.05
    assert 0.5 < table["ccc"].value < 1
    assert table["retrieval_top5"].value > 0.5


def test_an_edit_that_stops_half_way(space: FeatureSpace, source: Response, target: Response) -> None:
    half = Response((source.features + target.features) / 2)
    table = faithfulness_table(space, source, target, half)
    assert table["shift"].value == pytest.approx(0.5)
    assert [table["shift"].low, table["shift"].high] == pytest.approx([0.5, 0.5])
    assert table["residue"].value == pytest.approx(0, abs=1e-9)


def test_shift_and_residue_by_hand() -> None:
    start, wish = np.zeros((3, 2)), np.array([[2.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
    result = np.array([[1.0, 1.0], [-2.0, 4.0], [1.0, 0.0]])
    gain, residue = relative_shift(start, wish, result)
    assert gain[:2].tolist() == [0.5, -1.0]
    assert residue[:2].tolist() == [0.5, 2.0]
    assert math.isnan(gain[2]) and math.isnan(residue[2]), "a pair that asks for no change has no shift"
    assert shift_table(start, wish, result)["shift"].count == 2


def test_concordance_by_hand() -> None:
    target, measured = np.array([[1.0], [2.0], [3.0]]), np.array([[2.0], [3.0], [4.0]])
    # Population variances 2/3 each, covariance 2/3, means one apart: (4/3) / (4/3 + 1).
    assert concordance(target, measured).tolist() == [pytest.approx(4 / 7)]
    assert concordance(target, -target + 4).tolist() == [pytest.approx(-1)]


def test_concordance_equals_the_one_trained_on() -> None:
    generator = np.random.default_rng(0)
    target, measured = generator.normal(2, 3, (40, 5)), generator.normal(1, 2, (40, 5))
    trained = training_concordance(torch.from_numpy(measured), torch.from_numpy(target))
    assert concordance(target, measured) == pytest.approx(trained.numpy())


def test_constant_dimensions_give_no_nan() -> None:
    generator = np.random.default_rng(0)
    target = generator.normal(size=(50, 3))
    target[:, 1] = 0.1 + 0.2  # no exact binary fraction, so a careless variance is not exactly 0
    assert concordance(target, target).tolist() == [pytest.approx(1), 0, pytest.approx(1)]
    assert varying(target).tolist() == [0, 2]
    table = agreement_table(target, target)
    assert table["ccc"].value == pytest.approx(1), "a dimension that is asked to be constant is not averaged in"
    assert table["r2"].value == pytest.approx(1)


def test_everything_constant_gives_no_nan(space: FeatureSpace) -> None:
    still = Response(np.tile(some_features(1, 5), (10, 1)))
    moved = Response(np.tile(some_features(1, 6), (10, 1)))
    table = faithfulness_table(space, still, moved, still)
    assert all(math.isfinite(found.value) for found in table.values())
    assert table["ccc"].value == 0 and table["r2"].value == 0


def test_dead_features_are_dropped(space: FeatureSpace, source: Response, target: Response) -> None:
    assert standardize(space, source.features).shape == (200, 7)
    loud = target.features.copy()
    loud[:, DEAD] = 1e6
    table = faithfulness_table(space, source, target, Response(loud))
    assert table["shift"].value == pytest.approx(1)


def test_r2_equals_scikit_learn_on_every_resample() -> None:
    generator = np.random.default_rng(0)
    target = generator.normal(size=(60, 4)) * [1, 2, 3, 4]
    measured = target + generator.normal(size=(60, 4))
    weights = resample_weights(60, draws=5)
    expected = [r2_score(target, measured, sample_weight=row, multioutput="variance_weighted") for row in weights]
    assert weighted_r2(weights, target, measured) == pytest.approx(expected)


def test_cosine_of_the_mean_is_zero() -> None:
    assert centred_cosine(np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([[0.0, 0.0], [2.0, 2.0]])) == pytest.approx(
        [0, 1]
    )


def test_retrieval_ranks_by_hand() -> None:
    gallery = np.array([[0.0], [1.0], [2.0], [5.0]])
    measured = np.array([[0.9], [4.0]])
    target = gallery[[0, 3]]
    assert retrieval_ranks(measured, target, gallery, np.array([0, 3])).tolist() == [2, 1]


def test_ties_get_the_middle_rank() -> None:
    gallery = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 9.0]])
    assert retrieval_ranks(np.array([[1.0, 0.1]]), gallery[:1], gallery, np.array([0])).tolist() == [2]
    everywhere = retrieval_ranks(np.zeros((1, 2)), np.array([[0.0, 1.0]]), np.array([[1.0, 0], [0, -1.0]]))
    assert everywhere.tolist() == [2], "three vectors equally far: ranks 1, 2, 3, the middle one is 2"


def test_equal_vectors_tie_in_spite_of_rounding() -> None:
    generator = np.random.default_rng(0)
    once = generator.normal(size=(1, 512)) * 100
    gallery = np.repeat(once, 101, axis=0)
    ranks = retrieval_ranks(once + generator.normal(size=(1, 512)), once, gallery, np.array([7]))
    assert ranks.tolist() == [51]


def test_galleries_are_filled_up_to_their_size() -> None:
    target = np.arange(5.0)[:, None] * 10
    others = np.array([[41.0], [-1.0]])
    lost = np.full((5, 1), 1000.0)
    assert gallery_ranks(lost, target, size=3).tolist() == [3, 2, 1, 2, 1]
    assert gallery_ranks(lost, target, others, size=7).tolist() == [6, 5, 4, 3, 2]
    assert gallery_ranks(np.zeros((0, 1)), np.zeros((0, 1))).tolist() == []
