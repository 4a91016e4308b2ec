"""Did the edit arrive where it was asked to, in the black box's feature space?

x is the source, c0 = f(x) its features, c the features asked for, c' = f(G(x, c)) those measured; all standardised with
the training mean and deviation, features that are dead on the training set left out.
"""

import numpy as np

from featgan.features.space import FeatureSpace
from featgan.metrics.bootstrap import (
    Floats,
    Integers,
    Measure,
    divide,
    mean_measure,
    measure,
    measures,
    median_measure,
    ratio_measure,
)
from featgan.metrics.predictions import Response, project, standardize

GALLERY_SIZE = 1000
"""Vectors among which the requested one is sought."""

COMPONENTS_SHOWN = 10
"""Leading principal components that get a line of their own."""


def relative_shift(source: Floats, target: Floats, measured: Floats) -> tuple[Floats, Floats]:
    """How far along the asked change, and how far off it, each pair went: three [N, L] => gain [N], residue [N].

    gain = <c' - c0, c - c0> / |c - c0|^2: 0 copied the source, 1 arrived. residue = the part of c' - c0 orthogonal to
    c - c0, as a share of |c - c0|. Not a number for a pair that asks for no change.
    """
    asked, made = target - source, measured - source
    squares = (asked**2).sum(1)
    gain = divide((made * asked).sum(1), squares, np.nan)
    residue = divide(np.linalg.norm(made - gain[:, None] * asked, axis=1), np.sqrt(squares), np.nan)
    return gain, residue


def weighted_moments(weights: Floats, first: Floats, second: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Weights [D, N], two [N, L] => difference of means, the two population variances, covariance; each [D, L]."""
    # Moved to a common origin first: one-pass variances of a constant column are then exactly 0.
    origin = first.mean(0)
    first, second = first - origin, second - origin
    mean_first, mean_second = weights @ first, weights @ second
    variance_first = np.maximum(weights @ first**2 - mean_first**2, 0)
    variance_second = np.maximum(weights @ second**2 - mean_second**2, 0)
    covariance = weights @ (first * second) - mean_first * mean_second
    return mean_first - mean_second, variance_first, variance_second, covariance


def weighted_concordance(weights: Floats, target: Floats, measured: Floats) -> Floats:
    """Lin's concordance correlation (1989) of each dimension: weights [D, N], two [N, L] => [D, L] in [-1, 1].

    Population variances; 0 where neither varies nor differs.
    """
    shift, variance_target, variance_measured, covariance = weighted_moments(weights, target, measured)
    return divide(2 * covariance, variance_target + variance_measured + shift**2)


def concordance(target: Floats, measured: Floats) -> Floats:
    """CCC of each dimension over all rows: two [N, L] => [L] in [-1, 1], 1 where they agree."""
    everyone = np.full((1, len(target)), 1 / len(target))
    return np.ravel(weighted_concordance(everyone, target, measured))


def weighted_r2(weights: Floats, target: Floats, measured: Floats) -> Floats:
    """Variance-weighted R2 over all dimensions: weights [D, N], two [N, L] => [D]; 1 perfect, 0 as good as the mean.

    scikit-learn's `r2_score(..., multioutput="variance_weighted")` for many weightings at once; 0 without variance.
    """
    centred = target - target.mean(0)
    residual = weights @ ((target - measured) ** 2).sum(1)
    total = weights @ (centred**2).sum(1) - ((weights @ centred) ** 2).sum(1)
    return np.where(total > 1e-12, 1 - divide(residual, total), 0.0)


def centred_cosine(target: Floats, measured: Floats) -> Floats:
    """Cosine between the standardised vectors, which are centred on the training mean: two [N, L] => [N] in [-1, 1].

    0 where one of them is the mean itself.
    """
    lengths = np.linalg.norm(target, axis=1) * np.linalg.norm(measured, axis=1)
    return divide((target * measured).sum(1), lengths)


def varying(target: Floats) -> Integers:
    """Columns of [N, L] that differ between rows: a dimension asked to be constant cannot be agreed with."""
    return np.flatnonzero(np.ptp(target, axis=0) > 1e-9)


def retrieval_ranks(measured: Floats, target: Floats, gallery: Floats, target_rows: Integers | None = None) -> Floats:
    """Rank of c among a gallery by distance to c': [N, L], [N, L], [G, L] => [N], 1 the nearest, ties mid-rank.

    `target_rows` [N] says which gallery row is the target itself, so that it is not its own rival; -1 (or None) where
    the gallery does not hold it. Another row with equal features is a tie.
    """
    own = ((measured - target) ** 2).sum(1)
    squares = (measured**2).sum(1)[:, None] + (gallery**2).sum(1)[None]
    distances = squares - 2 * measured @ gallery.T
    # The expanded form loses digits, so a tie is equality up to rounding.
    margin = 1e-10 * (1 + squares)
    nearer = (distances < own[:, None] - margin).astype(np.float64)
    ties = (np.abs(distances - own[:, None]) <= margin).astype(np.float64)
    if target_rows is not None:
        held = np.flatnonzero(target_rows >= 0)
        nearer[held, target_rows[held]] = 0
        ties[held, target_rows[held]] = 0
    return np.sum(nearer + ties / 2, axis=1) + 1


def gallery_ranks(measured: Floats, target: Floats, others: Floats | None = None, size: int = GALLERY_SIZE) -> Floats:
    """Ranks [N] with the pairs' own targets as gallery, `size` pairs at a time; the last, shorter block is filled up.

    It is filled with earlier targets, or, where there are fewer than `size` pairs, with `others` [O, L]: vectors of
    images that are nobody's target. With fewer vectors than `size` in all, the gallery is as large as they allow.
    """
    pool = target if others is None else np.concatenate([target, others])
    ranks = []
    for start in range(0, len(target), size):
        block = slice(start, min(start + size, len(target)))
        length = block.stop - block.start
        spare = np.concatenate([pool[:start], pool[block.stop :]])[: size - length]
        gallery = np.concatenate([target[block], spare])
        ranks.append(retrieval_ranks(measured[block], target[block], gallery, np.arange(length)))
    return np.concatenate(ranks) if ranks else np.zeros(0)


def shift_table(source: Floats, target: Floats, measured: Floats, seed: int = 0) -> dict[str, Measure]:
    """Relative shift and residue, over standardised [N, L]: mean and median over pairs, and of all pairs together.

    The mean is led by pairs that ask for little; `shift_aggregate`, sum of products over sum of squares, is not.
    """
    gain, residue = relative_shift(source, target, measured)
    asked = target - source
    products = ((measured - source) * asked).sum(1)
    return {
        "shift": mean_measure(gain, seed),
        "shift_median": median_measure(gain, seed),
        "shift_aggregate": ratio_measure(products, (asked**2).sum(1), seed),
        "residue": mean_measure(residue, seed),
        "residue_median": median_measure(residue, seed),
    }


def agreement_table(target: Floats, measured: Floats, seed: int = 0) -> dict[str, Measure]:
    """CCC (mean over the dimensions whose request varies), variance-weighted R2, centred cosine; of two [N, L]."""
    kept = varying(target)

    def mean_concordance(weights: Floats) -> Floats:
        each = weighted_concordance(weights, target[:, kept], measured[:, kept])
        return np.sum(each, axis=1) / max(len(kept), 1)

    count = len(target)
    return {
        "ccc": measure(mean_concordance, count, seed),
        "r2": measure(lambda weights: weighted_r2(weights, target, measured), count, seed),
        "centred_cosine": mean_measure(centred_cosine(target, measured), seed),
    }


def component_table(target: Floats, measured: Floats, seed: int = 0) -> dict[str, Measure]:
    """Agreement in whitened principal components [N, K]: CCC of the leading ones, then CCC, R2, cosine over all."""
    shown = min(COMPONENTS_SHOWN, target.shape[1])
    each = measures(lambda weights: weighted_concordance(weights, target, measured)[:, :shown], len(target), seed)
    table = {f"component_{index:02d}_ccc": found for index, found in enumerate(each, 1)}
    return table | {f"components_{name}": found for name, found in agreement_table(target, measured, seed).items()}


def retrieval_table(
    measured: Floats, target: Floats, others: Floats | None = None, size: int = GALLERY_SIZE, seed: int = 0
) -> dict[str, Measure]:
    """Share of pairs whose request is the nearest, and among the five nearest, and the mean reciprocal rank.

    A name carries no gallery size: read `retrieval_gallery`, the number of vectors sought among.
    """
    ranks = gallery_ranks(measured, target, others, size)
    held = float(min(size, len(target) + (0 if others is None else len(others))))
    return {
        "retrieval_top1": mean_measure(ranks <= 1, seed),
        "retrieval_top5": mean_measure(ranks <= 5, seed),
        "retrieval_mrr": mean_measure(1 / ranks, seed),
        "retrieval_gallery": Measure(held, held, held, len(target)),
    }


def faithfulness_table(
    space: FeatureSpace,
    source: Response,
    target: Response,
    measured: Response,
    gallery: Floats | None = None,
    seed: int = 0,
) -> dict[str, Measure]:
    """Every faithfulness measure of N pairs that lives in feature space, by name.

    `source`, `target` and `measured` hold raw features [N, F]; `gallery` [G, F] holds features of further real images,
    which must not be any pair's target, to fill the retrieval gallery up to 1000.
    """
    start, wish, result = (standardize(space, each.features) for each in (source, target, measured))
    others = None if gallery is None else standardize(space, gallery)
    return {
        **shift_table(start, wish, result, seed),
        **agreement_table(wish, result, seed),
        **component_table(project(space, target.features), project(space, measured.features), seed),
        **retrieval_table(result, wish, others, seed=seed),
    }
