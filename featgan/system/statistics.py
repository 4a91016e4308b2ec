"""Statistics used by more than one package."""

from torch import Tensor


def concordance_correlation(estimate: Tensor, target: Tensor) -> Tensor:
    """Compute Lin's concordance correlation coefficient of each dimension: two [N, C] => [C] in [-1, 1].

    Means, variances and covariances are those of the given rows, without Bessel's correction. A dimension in which
    both inputs are the same constant has the value 0.
    """
    mean_x, mean_y = estimate.mean(0), target.mean(0)
    variance_x, variance_y = estimate.var(0, correction=0), target.var(0, correction=0)
    covariance = ((estimate - mean_x) * (target - mean_y)).mean(0)
    return 2 * covariance / (variance_x + variance_y + (mean_x - mean_y).square()).clamp_min(1e-8)
