"""Do edited images lie where real ones lie? Frechet distance of Gaussians (Heusel et al. 2017), in any feature space.

d^2 = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2), m and S the mean and covariance of each set.
"""

from collections.abc import Mapping

import numpy as np

from featgan.metrics.intervals import DRAWS, NOTHING, Floats, Measure, as_floats, resample_weights

WIDE = 256
"""Features from which an interval is taken from few draws: each costs two eigendecompositions."""

DRAWS_WIDE = 20


def moments(features: Floats, weights: Floats | None = None) -> tuple[Floats, Floats]:
    """Mean [F] and covariance [F, F] (divided by N - 1) of [N, F], or of its resample with weights [N]."""
    count = len(features)
    weights = np.full(count, 1 / count) if weights is None else weights
    mean = weights @ features
    centred = features - mean
    return mean, (centred * weights[:, None]).T @ centred * (count / (count - 1))


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


def frechet_distance(first: Floats, second: Floats) -> float:
    """Squared Frechet distance between two feature sets [N, F] and [M, F] of at least two rows each."""
    return gaussian_distance(*moments(first), *moments(second))


def frechet_measure(real: Floats, generated: Floats, seed: int = 0) -> Measure:
    """Frechet distance with value +- 1.96 deviations over resamples of both sets; `count` is the generated images.

    A resample holds fewer distinct images, which raises the distance by itself; so the resamples give the width of
    the interval only, and its centre is the value. Not a number with fewer than two images on either side.
    """
    if min(len(real), len(generated)) < 2:
        return NOTHING
    value = frechet_distance(real, generated)
    draws = DRAWS_WIDE if real.shape[1] > WIDE else DRAWS
    pairs = zip(
        resample_weights(len(real), draws, seed), resample_weights(len(generated), draws, seed + 1), strict=True
    )
    spread = np.std([gaussian_distance(*moments(real, one), *moments(generated, other)) for one, other in pairs])
    return Measure(value, max(value - 1.96 * float(spread), 0.0), value + 1.96 * float(spread), len(generated))


def realism_table(spaces: Mapping[str, tuple[Floats, Floats]], seed: int = 0) -> dict[str, Measure]:
    """Frechet distance in every space given: name => (features of real images [N, F], of edited ones [M, F]).

    Compare only distances of equal N and M: the estimate falls towards the truth as they grow. Standardised features
    make distances of different boxes comparable in kind.
    """
    return {
        f"frechet_{name}": frechet_measure(as_floats(real), as_floats(generated), seed)
        for name, (real, generated) in spaces.items()
    }
