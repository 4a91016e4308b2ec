"""Do edited images lie where real ones lie? Frechet (Heusel et al. 2017) and kernel distance, in any feature space.

d^2 = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2), m and S the mean and covariance of each set; KID (Binkowski
et al. 2018) is the squared maximum mean discrepancy under the kernel (<x, y> / F + 1)^3, unbiased.
"""

from collections.abc import Mapping

import numpy as np

from featgan.metrics.bootstrap import DRAWS, NOTHING, Floats, Measure, pair_means, resample_weights

WIDE = 256
"""Features above which an interval is taken from few draws, and a control gets none: each draw costs seconds."""

DRAWS_WIDE = 20

MOST_KERNEL = 4000
"""Images of each set that enter the kernel distance, whose cost grows with their square."""


def moments(features: Floats, weights: Floats | None = None) -> tuple[Floats, Floats]:
    """Mean [F] and covariance [F, F] (divided by N - 1) of [N, F], or of its resample with weights [N]."""
    mean, factor = mean_and_factor(features, weights)
    return mean, factor.T @ factor


def mean_and_factor(features: Floats, weights: Floats | None = None) -> tuple[Floats, Floats]:
    """Mean [F] and A [N, F], the covariance being A^T A."""
    count = len(features)
    weights = np.full(count, 1 / count) if weights is None else weights
    mean = weights @ features
    return mean, (features - mean) * np.sqrt(weights * count / (count - 1))[:, None]


def symmetric_root(matrix: Floats) -> Floats:
    """The square root of a positive semidefinite matrix; eigenvalues below 0 are rounding and taken as 0."""
    values, vectors = np.linalg.eigh(matrix)
    return np.matmul(vectors * np.sqrt(np.maximum(values, 0)), vectors.T)


def gaussian_distance(
    mean_first: Floats, covariance_first: Floats, mean_second: Floats, covariance_second: Floats
) -> float:
    """Squared Frechet distance of two Gaussians in F dimensions, at least 0; singular covariances are fine."""
    root = symmetric_root(covariance_first)
    # The product under the trace is similar to S1 S2 but symmetric, so its eigenvalues are real.
    values = np.linalg.eigvalsh(root @ covariance_second @ root)
    overlap = np.sqrt(np.maximum(values, 0)).sum()
    spread = np.trace(covariance_first) + np.trace(covariance_second) - 2 * overlap
    return max(float(((mean_first - mean_second) ** 2).sum() + spread), 0.0)


def frechet_distance(
    first: Floats, second: Floats, weights_first: Floats | None = None, weights_second: Floats | None = None
) -> float:
    """Squared Frechet distance between two sets [N, F] and [M, F] of at least two rows each, or between resamples."""
    if max(len(first), len(second)) >= first.shape[1]:
        return gaussian_distance(*moments(first, weights_first), *moments(second, weights_second))
    # With fewer images than features, tr (S1^1/2 S2 S1^1/2)^1/2 is the sum of the singular values of a small A1 A2^T.
    mean_first, factor_first = mean_and_factor(first, weights_first)
    mean_second, factor_second = mean_and_factor(second, weights_second)
    overlap = np.linalg.svd(factor_first @ factor_second.T, compute_uv=False).sum()
    spread = (factor_first**2).sum() + (factor_second**2).sum() - 2 * overlap
    return max(float(((mean_first - mean_second) ** 2).sum() + spread), 0.0)


def frechet_measure(real: Floats, generated: Floats, seed: int = 0, draws: int = DRAWS) -> Measure:
    """Frechet distance with value +- 1.96 deviations over resamples of both sets; `count` is the generated images.

    A resample holds fewer distinct images, which raises the distance by itself; so the resamples give the width of
    the interval only, and its centre is the value. No interval without draws; not a number with fewer than two images
    on either side.
    """
    if min(len(real), len(generated)) < 2:
        return NOTHING
    value = frechet_distance(real, generated)
    if not draws:
        return Measure(value, float("nan"), float("nan"), len(generated))
    pairs = zip(
        resample_weights(len(real), draws, seed), resample_weights(len(generated), draws, seed + 1), strict=True
    )
    spread = np.std([frechet_distance(real, generated, one, other) for one, other in pairs])
    return Measure(value, max(value - 1.96 * float(spread), 0.0), value + 1.96 * float(spread), len(generated))


def kernel(first: Floats, second: Floats) -> Floats:
    """(<x, y> / F + 1)^3 of two sets: [N, F], [M, F] => [N, M]."""
    return np.asarray((first @ second.T / first.shape[1] + 1) ** 3)


def kernel_measure(real: Floats, generated: Floats, seed: int = 0) -> Measure:
    """Kernel distance (KID) with value +- 1.96 deviations over resamples of both sets; 0 expected of equal sources.

    Unbiased, whatever the number of images, so it can fall below 0. The first `MOST_KERNEL` images of each set enter.
    """
    real, generated = real[:MOST_KERNEL], generated[:MOST_KERNEL]
    if min(len(real), len(generated)) < 2:
        return NOTHING
    within_real, within_generated, between = kernel(real, real), kernel(generated, generated), kernel(real, generated)

    def distance(one: Floats, other: Floats) -> Floats:
        across = ((one @ between) * other).sum(1)
        return pair_means(one, within_real) + pair_means(other, within_generated) - 2 * across

    even = [np.full((1, len(rows)), 1 / len(rows)) for rows in (real, generated)]
    value = float(distance(*even)[0])
    drawn = resample_weights(len(real), seed=seed), resample_weights(len(generated), seed=seed + 1)
    spread = 1.96 * float(np.nanstd(distance(*drawn)))
    return Measure(value, value - spread, value + spread, len(generated))


def judged_half(count: int) -> slice:
    """Of `count` sources, those whose edits are compared with the others: one half is never both."""
    return slice(count // 2, 2 * (count // 2))


def realism_family(real: Floats, seen: Mapping[str, Floats], seed: int = 0) -> dict[str, dict[str, Measure]]:
    """`frechet_edited` and `kid_edited` of the generator and every control in one feature space; real ones' as floors.

    `real` [N, F] are the sources' features, `seen` those of what stands for the edits of the rows `judged_half(N)`. The
    first half of the real ones is compared with the second half's edits, and with that half itself: the floor, and the
    identity copy. Compare only distances of equal N: the estimate falls towards the truth as it grows.
    """
    wide = real.shape[1] > WIDE
    first, second = real[: len(real) // 2], real[judged_half(len(real))]
    draws = DRAWS_WIDE if wide else DRAWS
    found = {}
    for name, edited in seen.items():
        own = draws if name == "generator" or not wide else 0
        found[name] = {
            "frechet_edited": frechet_measure(first, edited, seed, own),
            "kid_edited": kernel_measure(first, edited, seed),
        }
    found["generator"] |= {
        "frechet_real_floor": frechet_measure(first, second, seed, draws),
        "kid_real_floor": kernel_measure(first, second, seed),
    }
    return found
