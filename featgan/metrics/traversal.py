"""Does moving one principal component move that component, evenly, and no other?

Components are whitened: a unit is one deviation on the training set. A sweep asks each of K components of each of N
images for S values, the rest as in the source, and measures M >= K components of the edited image, the first K of
them (or those named by `swept`) being the ones swept.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import rankdata

from featgan.metrics.bootstrap import Floats, Measure, as_floats, column_measures, divide, mean_measure, measure
from featgan.metrics.faithfulness import agreement_table

MONOTONE = 0.9
"""Rank correlation from which a sweep counts as monotone."""

STILL = 1e-4
"""Deviations below which a value did not move along a sweep: a box in float32 differs that much by itself."""


def settle(measured: Floats) -> Floats:
    """Sweeps along axis 2 of [N, K, S, ...] whose values differ by rounding only are made constant."""
    moves = np.ptp(measured, axis=2, keepdims=True) > STILL
    return np.where(moves, measured, measured[:, :, :1])


def correlations(first: Floats, second: Floats) -> Floats:
    """Pearson correlation along the last axis: two [..., S] => [...]; 0 where one of them does not vary."""
    first = first - first.mean(-1, keepdims=True)
    second = second - second.mean(-1, keepdims=True)
    lengths = np.sqrt((first**2).sum(-1) * (second**2).sum(-1))
    return np.where(lengths > 1e-12, divide((first * second).sum(-1), lengths), 0.0)


def monotonicity(requested: Floats, measured: Floats) -> Floats:
    """Spearman's rank correlation along the last axis, ties mid-rank: two [..., S] => [...] in [-1, 1].

    0 where the measured values do not move: standing still is not following. Values that differ by a box's rounding
    are ties.
    """
    return correlations(rankdata(requested, axis=-1), rankdata(np.round(measured / STILL), axis=-1))


def linearity(requested: Floats, measured: Floats) -> Floats:
    """R2 of a straight line through the sweep, along the last axis: two [..., S] => [...] in [0, 1]; 0 where still."""
    return correlations(requested, measured) ** 2


def sweep_slopes(requested: Floats, measured: Floats) -> Floats:
    """Least-squares slope of each measured value over the request: [N, K, S], [N, K, S, M] => [N, K, M]."""
    measured = settle(measured)
    measured = measured - measured[:, :, :1]  # a sweep that stands still then has a slope of exactly 0
    offsets = requested - requested.mean(-1, keepdims=True)
    squares = (offsets**2).sum(-1)
    assert (squares > 0).all(), "a sweep must ask for at least two different values"
    return divide(np.einsum("nks,nksm->nkm", offsets, measured), squares[..., None])


def crosstalk(requested: Floats, measured: Floats) -> Floats:
    """M[k, j]: mean over images of the change of measured component j per unit asked of k: => [K, M], in deviations."""
    return np.mean(sweep_slopes(broadcast_request(requested, measured), measured), axis=0)


def broadcast_request(requested: Floats, measured: Floats) -> Floats:
    """Requested values [S], [K, S] or [N, K, S] => [N, K, S], for measured [N, K, S, M]."""
    return np.broadcast_to(requested, measured.shape[:3])


def weighted_dominance(weights: Floats, slopes: Floats, swept: Sequence[int]) -> Floats:
    """sum |M_kk| / sum |M_kj| of the weighted mean matrix: weights [D, N], slopes [N, K, M] => [D]; 0 where still."""
    num_images, num_swept, num_measured = slopes.shape
    matrices = np.abs(weights @ slopes.reshape(num_images, -1)).reshape(-1, num_swept, num_measured)
    diagonal = matrices[:, np.arange(num_swept), list(swept)].sum(1)
    return divide(diagonal, matrices.sum((1, 2)))


def component_lines(rhos: Floats, slopes: Floats, straight: Floats, seed: int = 0) -> dict[str, Measure]:
    """Monotonicity, slope and linearity of each component: three [N, K]; components are numbered from 1."""
    table: dict[str, Measure] = {}
    for name, values in (("monotonicity", rhos), ("slope", slopes), ("linearity", straight)):
        each = enumerate(column_measures(values, seed), 1)
        table |= {f"component_{index:02d}_{name}": found for index, found in each}
    return table


def traversal_table(
    requested: Floats, measured: Floats, swept: Sequence[int] | None = None, seed: int = 0
) -> dict[str, Measure]:
    """Every traversal measure, over all components and by component.

    `requested` whitened values [S], [K, S] or [N, K, S]; `measured` whitened components [N, K, S, M]; `swept` the
    measured column of each swept component, the first K by default.
    """
    measured = settle(as_floats(measured))
    requested = broadcast_request(as_floats(requested), measured)
    columns = list(range(measured.shape[1])) if swept is None else list(swept)
    own = measured[:, np.arange(measured.shape[1]), :, columns].transpose(1, 0, 2)  # the index arrays come first
    rhos, straight = monotonicity(requested, own), linearity(requested, own)
    slopes = sweep_slopes(requested, measured)
    own_slopes = slopes[:, np.arange(len(columns)), columns]
    return {
        "monotonicity": mean_measure(rhos.mean(1), seed),
        "monotone_share": mean_measure((rhos >= MONOTONE).mean(1), seed),
        "slope": mean_measure(own_slopes.mean(1), seed),
        "linearity": mean_measure(straight.mean(1), seed),
        "diagonal_dominance": measure(lambda w: weighted_dominance(w, slopes, columns), len(slopes), seed),
        **component_lines(rhos, own_slopes, straight, seed),
    }


def projection_table(
    requested: Mapping[int, Floats], measured: Mapping[int, Floats], seed: int = 0
) -> dict[str, Measure]:
    """Distance, CCC, R2 and cosine as the first k components of the source are kept, by k: two [N, L], standardised.

    The distance is the root mean square over dimensions, mean over images: with k = 0 everybody asks for the mean, and
    nothing can be agreed with but how near it is.
    """
    table: dict[str, Measure] = {}
    for count in sorted(requested):
        wish, result = requested[count], measured[count]
        found = {"distance": mean_measure(np.sqrt(((wish - result) ** 2).mean(1)), seed)}
        found |= agreement_table(wish, result, seed) if count else {}
        table |= {f"projection_{count:02d}_{name}": measure for name, measure in found.items()}
    return table
