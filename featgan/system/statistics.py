"""Statistics that more than one package needs."""

from torch import Tensor


def concordance(estimate: Tensor, target: Tensor) -> Tensor:
    """Lin's concordance correlation coefficient of each dimension over the batch: two [N, C] => [C] in [-1, 1].

    All moments are population moments of the given rows. A dimension without any variance and difference counts 0.
    """
    mean_x, mean_y = estimate.mean(0), target.mean(0)
    variance_x, variance_y = estimate.var(0, correction=0), target.var(0, correction=0)
    covariance = ((estimate - mean_x) * (target - mean_y)).mean(0)
    return 2 * covariance / (variance_x + variance_y + (mean_x - mean_y).square()).clamp_min(1e-8)
