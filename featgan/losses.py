"""The terms of the objective, each a free function, as in StarGAN (Choi et al. 2018) and its conditions' losses.

D(x) gives a patch map and an estimate of the condition; every function takes what D said, never D itself, but for
the gradient penalties.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from featgan.distributed import gather_with_gradient


def wasserstein_discriminator(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """-mean D(x) + mean D(G(x, c)) (Arjovsky et al. 2017)."""
    return logits_fake.mean() - logits_real.mean()


def wasserstein_generator(logits_fake: Tensor) -> Tensor:
    """-mean D(G(x, c))."""
    return -logits_fake.mean()


def logistic_discriminator(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Cross-entropy of real against fake (Goodfellow et al. 2014, eq. 1), in logits."""
    return F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean()


def logistic_generator(logits_fake: Tensor) -> Tensor:
    """The non-saturating form: -log sigmoid D(G(x, c))."""
    return F.softplus(-logits_fake).mean()


def input_gradient_norms(critic: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """||d sum critic(x) / dx||_2 over all pixels of each image [N], differentiable in the critic's weights.

    `critic` maps images to a patch map and must be the bare network: wrappers of distributed training hook into
    the inner derivative.
    """
    gradients = torch.func.grad(lambda points: critic(points).sum())(images)
    # The norm's derivative is infinite at 0; the bound is far below any gradient that matters.
    return gradients.flatten(1).float().square().sum(1).clamp_min(1e-24).sqrt()


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], images_real: Tensor, images_fake: Tensor, alpha: Tensor
) -> Tensor:
    """mean (||d D(x_hat) / d x_hat||_2 - 1)^2 at x_hat = a x + (1 - a) G(x, c) (Gulrajani et al. 2017, eq. 3).

    `alpha` [N] in [0, 1], one number per image.
    """
    points = torch.lerp(images_fake.detach(), images_real, alpha[:, None, None, None])
    return (input_gradient_norms(critic, points) - 1).square().mean()


def r1_penalty(critic: Callable[[Tensor], Tensor], images_real: Tensor) -> Tensor:
    """mean ||d D(x) / dx||_2^2 at real images (Mescheder et al. 2018, eq. 9 without gamma / 2)."""
    return input_gradient_norms(critic, images_real).square().mean()


def concordance(estimate: Tensor, target: Tensor) -> Tensor:
    """Lin's concordance correlation coefficient of each dimension over the batch: two [N, C] => [C] in [-1, 1].

    All moments are population moments of the given rows. A dimension without any variance and difference counts 0.
    """
    mean_x, mean_y = estimate.mean(0), target.mean(0)
    variance_x, variance_y = estimate.var(0, correction=0), target.var(0, correction=0)
    covariance = ((estimate - mean_x) * (target - mean_y)).mean(0)
    return 2 * covariance / (variance_x + variance_y + (mean_x - mean_y).square()).clamp_min(1e-8)


def concordance_loss(estimate: Tensor, target: Tensor, reduction: str = "sum") -> Tensor:
    """1 - CCC, summed or averaged over dimensions; statistics are those of the batch of all processes together."""
    pair = gather_with_gradient(torch.stack([estimate, target], 1))
    losses = 1 - concordance(pair[:, 0], pair[:, 1])
    return losses.sum() if reduction == "sum" else losses.mean()


def regression_loss(estimate: Tensor, target: Tensor, regression: str, reduction: str = "sum") -> Tensor:
    """`ccc` or `mse` between [N, C] estimates and targets."""
    if regression == "mse":
        return F.mse_loss(estimate, target)
    return concordance_loss(estimate, target, reduction)


def attribute_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy, summed over attributes, averaged over the batch: [N, A] logits and 0/1 targets."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(logits)


def class_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy with one-hot targets (or probabilities) [N, C]."""
    return F.cross_entropy(logits, target)


def cycle_loss(images: Tensor, reconstruction: Tensor) -> Tensor:
    """mean |x - G(G(x, c_target), c_source)|."""
    return (images - reconstruction).abs().mean()
